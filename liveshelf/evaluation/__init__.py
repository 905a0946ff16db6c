"""What a shop would gain on its own log. Above serving and trainer, which never meet but here: it trains with one and asks the other."""
