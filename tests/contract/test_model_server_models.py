"""GetModelMetadata, GetModelStatus and HandleReloadConfigRequest: signatures, states, labels and version policies."""

import grpc
import pytest

pytest.importorskip("tensorflow")

from tensorflow_serving.apis import get_model_metadata_pb2, model_management_pb2

from tests.contract.tfserving import AVAILABLE, END, Code, Model, Server, wait_until


def test_metadata_is_the_signatures(model: Model) -> None:
    model.serve(1)
    request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec={"name": model.name}, metadata_field=["signature_def"])
    response = model.server.prediction.GetModelMetadata(request)
    found = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(found)
    assert response.model_spec.version.value == 1
    default = found.signature_def["serving_default"]
    assert {alias: info.dtype for alias, info in default.inputs.items()} == {"item": 7, "x": 1}
    assert [dim.size for dim in default.inputs["x"].tensor_shape.dim] == [-1, 3]
    assert set(default.outputs) == {"id", "y"}
    assert set(found.signature_def["slow"].inputs) == {"steps"}
    assert default.method_name == "tensorflow/serving/predict"
    for fields in ([], ["weights"]):
        with pytest.raises(grpc.RpcError) as caught:
            model.server.prediction.GetModelMetadata(
                get_model_metadata_pb2.GetModelMetadataRequest(model_spec={"name": model.name}, metadata_field=fields)
            )
        assert caught.value.code() is Code.INVALID_ARGUMENT


def test_status_of_one_version(model: Model) -> None:
    model.serve(1, 2)
    entry = model.server.status(model.name, 2)
    assert (entry.version, entry.state, entry.status.error_code) == (2, AVAILABLE, 0)
    with pytest.raises(grpc.RpcError) as caught:
        model.server.status(model.name, 9)
    assert caught.value.details() == f"Could not find version 9 of model {model.name}"


def test_labels_move_and_never_point_at_nothing(model: Model) -> None:
    model.serve(1, 2)
    policy = {"all": {}}
    model.server.reload(model.name, model_version_policy=policy, version_labels={"stable": 1})
    assert model.predict({"version_label": "stable"}).model_spec.version.value == 1
    with pytest.raises(grpc.RpcError) as caught:
        model.server.reload(model.name, model_version_policy=policy, version_labels={"stable": 5})
    assert caught.value.code() is Code.FAILED_PRECONDITION
    assert "Request to assign label to version 5" in caught.value.details()
    assert model.predict({"version_label": "stable"}).model_spec.version.value == 1
    model.server.reload(model.name, model_version_policy=policy, version_labels={"stable": 2})
    assert model.predict({"version_label": "stable"}).model_spec.version.value == 2
    assert model.refused({"version_label": "canary"}) == (Code.INVALID_ARGUMENT, "Unrecognized servable version label: canary")


def test_policies_by_reload(model: Model) -> None:
    model.serve(1, 2, 3, latest={"num_versions": 1}, available={3})
    for policy, expected in [
        ({"all": {}}, {1, 2, 3}),
        ({"specific": {"versions": [1, 3]}}, {1, 3}),
        ({"latest": {"num_versions": 2}}, {2, 3}),
    ]:
        model.server.reload(model.name, model_version_policy=policy)
        model.server.wait_available(model.name, expected)


def test_bad_config_is_refused(any_server: Server) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        any_server.model_service.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest(), timeout=10)
    assert caught.value.code() is Code.INVALID_ARGUMENT


def test_metadata_of_what_is_not_there(model: Model) -> None:
    """As Predict: both ask ServerCore::GetServableHandle (tensorflow_serving/servables/tensorflow/get_model_metadata_impl.cc)."""
    model.serve(1)

    def refused(spec: dict[str, object]) -> tuple[grpc.StatusCode, str]:
        request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
        with pytest.raises(grpc.RpcError) as caught:
            model.server.prediction.GetModelMetadata(request)
        return caught.value.code(), caught.value.details()

    assert refused({"name": "nobody"}) == (Code.NOT_FOUND, "Servable not found for request: Latest(nobody)")
    missing = {"name": model.name, "version": {"value": 8}}
    assert refused(missing) == (Code.NOT_FOUND, f"Servable not found for request: Specific({model.name}, 8)")
    unlabelled = {"name": model.name, "version_label": "x"}
    assert refused(unlabelled) == (Code.INVALID_ARGUMENT, "Unrecognized servable version label: x")


def test_specific_policy_waits_for_a_version_that_is_not_there_yet(model: Model) -> None:
    model.serve(1, 2, specific={"versions": [1, 4]}, available={1})
    model.add(4)
    model.server.wait_available(model.name, {1, 4})


def test_model_taken_out_of_the_config_stops(model: Model) -> None:
    """ReloadConfig with a list that lacks it unloads a model (tensorflow_serving/model_servers/server_core.cc, AddModelsViaModelConfigList)."""
    model.serve(1)
    kept = {name: entry for name, entry in model.server.entries.items() if name != model.name}
    request = model_management_pb2.ReloadConfigRequest()
    for name, entry in kept.items():
        path = str(model.path.parent / name)
        request.config.model_config_list.config.add(name=name, base_path=path, model_platform="tensorflow", **entry)
    model.server.model_service.HandleReloadConfigRequest(request, timeout=60)
    model.server.entries = kept
    wait_until(lambda: model.server.states(model.name) == {1: END}, "unloaded")
    assert model.refused() == (Code.NOT_FOUND, f"Servable not found for request: Latest({model.name})")


def test_config_errors_are_named_and_change_nothing(model: Model) -> None:
    """Words of tensorflow_serving/model_servers/server_core.cc (ValidateModelConfigList, GetPlatform)."""
    model.serve(1)
    entry = {"name": "twice", "base_path": str(model.path), "model_platform": "tensorflow"}
    for bad, says in [
        ([entry, entry], "Illegal to list model twice multiple times"),
        ([entry | {"model_platform": ""}], "model_platform"),
    ]:
        request = model_management_pb2.ReloadConfigRequest()
        for one in bad:
            request.config.model_config_list.config.add(**one)
        with pytest.raises(grpc.RpcError) as caught:
            model.server.model_service.HandleReloadConfigRequest(request, timeout=60)
        assert caught.value.code() is Code.INVALID_ARGUMENT
        assert says in caught.value.details()
    assert model.predict().model_spec.version.value == 1
