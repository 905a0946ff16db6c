

def test_no_cluster_id_looks_like_an_option() -> None:
    """One in 64 random ids would start with a hyphen, and Kafka's formatter refuse it (seen)."""
    ids = {new_cluster_id() for _ in range(2000)}
    assert len(ids) == 2000
    assert all(re.fullmatch(r"\w[\w-]{21}", cluster_id) for cluster_id in ids)
