"""Predict: signatures, versions, outputs, and what is refused in which words."""

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

pytest.importorskip("tensorflow")

from tensorflow_serving.apis import classification_pb2, get_model_status_pb2, predict_pb2

from tests.contract.tfserving import Code, Model, Server, tensor, tf, values


def test_predict_answers_all_outputs_and_says_who_answered(model: Model) -> None:
    response = model.serve(2).predict()
    assert values(response) == {"id": [1, 0], "y": [12.0, 2.0]}
    assert (response.model_spec.name, response.model_spec.version.value) == (model.name, 2)
    assert response.model_spec.signature_name == "serving_default"


def test_signature_by_name(model: Model) -> None:
    response = model.serve(1).predict({"signature_name": "slow"}, steps=7)
    assert values(response) == {"count": 7}
    assert response.model_spec.signature_name == "slow"


def test_output_filter(model: Model) -> None:
    model.serve(1)
    assert values(model.predict({"output_filter": ["y"]})) == {"y": [6.0, 1.0]}
    assert values(model.predict({"output_filter": ["y", "id"]})) == {"id": [1, 0], "y": [6.0, 1.0]}
    code, says = model.refused({"output_filter": ["z"]})
    assert code is Code.INVALID_ARGUMENT
    assert says.startswith("output tensor alias not found in signature: z")
    assert model.refused({"output_filter": ["y", "y"]}) == (Code.INVALID_ARGUMENT, "duplicate output tensor alias: y")


def test_inputs_in_typed_fields_are_read(model: Model) -> None:
    x = tf.make_tensor_proto(np.zeros((1, 3), np.float32))
    x.tensor_content = b""
    x.float_val[:] = [5.0]  # one value stands for all three
    assert values(model.serve(1).predict(item=[b"sock"], x=x)) == {"id": [2], "y": [15.0]}


def test_versions_explicit_and_latest(model: Model) -> None:
    model.serve(1, 3)
    assert model.predict().model_spec.version.value == 3
    assert values(model.predict({"version": 1}))["y"] == [6.0, 1.0]
    assert model.refused({"version": 2}) == (Code.NOT_FOUND, f"Servable not found for request: Specific({model.name}, 2)")


def test_what_is_missing_or_wrong_is_named(model: Model) -> None:
    model.serve(1)
    x, item = [[1.0, 2.0, 3.0]], [b"hat"]
    code, says = model.refused({"signature_name": "rank"})
    assert (code, says) == (Code.FAILED_PRECONDITION, 'Serving signature key "rank" not found.')
    code, says = model.refused(x=x)
    assert code is Code.INVALID_ARGUMENT
    assert "input size does not match signature: 1!=2" in says
    assert "Missing but required: {item}" in says
    code, says = model.refused(x=x, item=item, y=x)
    assert code is Code.INVALID_ARGUMENT
    assert "Sent extra: {y}" in says
    assert model.refused(x=x, thing=item)[0] is Code.INVALID_ARGUMENT
    code, says = model.refused(x=[[b"a", b"b", b"c"]], item=item)
    assert code is Code.INVALID_ARGUMENT
    assert "to be float but string is provided" in says
    assert model.refused(x=[[1.0, 2.0, 3.0, 4.0]], item=item)[0] is Code.INVALID_ARGUMENT
    broken = tensor(x)
    broken.tensor_content = b"123"
    code, says = model.refused(x=broken, item=item)
    assert code is Code.INVALID_ARGUMENT
    assert "tensor parsing error: x" in says
    assert values(model.predict())["y"] == [6.0, 1.0]  # and it still answers


def test_unknown_model(any_server: Server) -> None:
    def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        return caught.value.code(), caught.value.details()  # type: ignore[attr-defined]

    status = get_model_status_pb2.GetModelStatusRequest(model_spec={"name": "nobody"})
    predict = any_server.prediction.Predict
    assert refusal(lambda: any_server.predict("nobody")) == (Code.NOT_FOUND, "Servable not found for request: Latest(nobody)")
    assert refusal(lambda: any_server.model_service.GetModelStatus(status)) == (
        Code.NOT_FOUND,
        "Could not find any versions of model nobody",
    )
    assert refusal(lambda: predict(predict_pb2.PredictRequest())) == (Code.INVALID_ARGUMENT, "Missing ModelSpec")
    assert refusal(lambda: any_server.predict("")) == (Code.INVALID_ARGUMENT, "ModelSpec has no name specified.")


def test_other_calls_are_unimplemented(our_server: Server) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        our_server.prediction.Classify(classification_pb2.ClassificationRequest())
    assert caught.value.code() is Code.UNIMPLEMENTED
    assert "use Predict" in caught.value.details()


def test_numbers_are_answered_in_typed_fields(model: Model) -> None:
    """RunPredict asks for `kAsProtoField` (tensorflow_serving/servables/tensorflow/predict_util.cc): clients may read nothing else."""
    response = model.serve(1).predict()
    assert list(response.outputs["y"].float_val) == [6.0, 1.0]
    assert list(response.outputs["id"].int64_val) == [1, 0]
    assert {tensor.tensor_content for tensor in response.outputs.values()} == {b""}


def test_every_batch_size_and_an_empty_one(model: Model) -> None:
    model.serve(1)
    for rows in (0, 1, 7, 500):
        x, item = np.ones((rows, 3), np.float32), np.array([b"sock"] * rows, object)
        answer = values(model.predict(item=tf.make_tensor_proto(item, tf.string, [rows]), x=tf.make_tensor_proto(x)))
        assert answer == {"id": [2] * rows, "y": [3.0] * rows}


def test_long_strings_survive(model: Model) -> None:
    """Up to 22 bytes TensorFlow keeps a string in place, beyond that elsewhere."""
    words = [b"a" * n for n in (0, 1, 22, 23, 24, 1000)]
    answer = model.serve(1).predict({"signature_name": "longer"}, item=[words])
    assert values(answer)["item"] == [[word + b"!" for word in words]]


def test_an_op_that_refuses_says_why(model: Model) -> None:
    """A session's error keeps its code (tensorflow_serving/servables/tensorflow/predict_util.cc returns it unchanged)."""
    code, says = model.serve(1).refused({"signature_name": "checked"}, x=[1.0, float("nan")])
    assert code is Code.INVALID_ARGUMENT
    assert "no number" in says


def test_inputs_whose_sizes_do_not_agree(model: Model) -> None:
    code, _ = model.serve(1).refused({"signature_name": "slow"}, steps=[1, 2])
    assert code is Code.INVALID_ARGUMENT
