"""The gRPC server itself: health of each service, reflection, the token, TLS for gRPC and HTTP, a port that is taken."""

import asyncio
import ssl
import subprocess
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from liveshelf.client import AsyncClient, Tls, UnauthenticatedError
from liveshelf.errors import ConflictError, SettingsError, UnavailableError
from serving.rpc import make_server
from tests.conftest import local_settings
from tests.scoring_api import scoring_api

RECOMMENDATIONS, EVENTS = "liveshelf.v1.RecommendationService", "liveshelf.v1.EventService"


def test_each_service_has_its_own_health(tmp_path: Path) -> None:
    """Events are taken while Kafka answers; shelves once the scorer is prepared, and the server as a whole is as they are."""

    async def run() -> list[str]:
        async with scoring_api(tmp_path) as api, grpc.aio.insecure_channel(api.settings.scoring_address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)

            async def states() -> str:
                answers = [await stub.Check(health_pb2.HealthCheckRequest(service=s)) for s in ("", RECOMMENDATIONS, EVENTS)]
                return "".join("+" if a.status == health_pb2.HealthCheckResponse.SERVING else "-" for a in answers)

            seen = [await states()]
            await api.health.set(RECOMMENDATIONS, True)
            seen.append(await states())
            await api.health.set(EVENTS, False)
            return [*seen, await states()]

    assert asyncio.run(run()) == ["--+", "+++", "++-"]


def test_reflection_names_every_service(tmp_path: Path) -> None:
    async def run() -> set[str]:
        async with scoring_api(tmp_path) as api, grpc.aio.insecure_channel(api.settings.scoring_address) as channel:
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            answer = await call.read()
            return {service.name for service in answer.list_services_response.service}

    assert asyncio.run(run()) >= {RECOMMENDATIONS, EVENTS, "grpc.health.v1.Health"}


def test_with_a_token_only_its_bearers_are_answered(tmp_path: Path) -> None:
    async def run() -> None:
        async with scoring_api(tmp_path, scoring_token="open sesame") as api:
            address = api.settings.scoring_address
            async with AsyncClient(address, 10_000, token="open sesame") as client:
                assert (await client.recommend(client_id="c")).request_id
            for token, said in (("", "wants its token"), ("guess", "not this scorer's")):
                async with AsyncClient(address, 10_000, token=token) as client:
                    with pytest.raises(UnauthenticatedError, match=said):
                        await client.recommend(client_id="c")
            body = {"shopper": {"client_id": "c"}}
            refused = await api.http.post("/v1/recommend", json=body)
            taken = await api.http.post("/v1/recommend", json=body, headers={"authorization": "Bearer open sesame"})
            assert (refused.status_code, taken.status_code) == (401, 200)
            async with grpc.aio.insecure_channel(address) as channel:  # probes have no token
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=EVENTS))

    asyncio.run(run())


def certificate(home: Path, name: str, ca: str = "") -> None:
    """name.key and name.crt: signed by `ca`, or by itself."""
    signed_by = ["-CA", f"{ca}.crt", "-CAkey", f"{ca}.key"] if ca else []
    names = ["-addext", "subjectAltName=IP:127.0.0.1"] if ca else ["-addext", "basicConstraints=critical,CA:TRUE"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}", *names, *signed_by],
        cwd=home, check=True, capture_output=True,
    )  # fmt: skip


def test_over_tls_only_who_shows_a_certificate_is_answered(tmp_path: Path) -> None:
    """One authority signs server and caller; no TLS, no trust in the authority, or no certificate of one's own: no answer."""
    for name, ca in (("ca", ""), ("server", "ca"), ("caller", "ca")):
        certificate(tmp_path, name, ca)
    ca, cert, key = str(tmp_path / "ca.crt"), str(tmp_path / "caller.crt"), str(tmp_path / "caller.key")
    tls = {
        "scoring_tls_cert": str(tmp_path / "server.crt"),
        "scoring_tls_key": str(tmp_path / "server.key"),
        "scoring_tls_client_ca": ca,
    }

    async def run() -> None:
        async with scoring_api(tmp_path, **tls) as api:
            address = api.settings.scoring_address
            async with AsyncClient(address, 10_000, tls=Tls(ca, cert, key)) as client:
                assert (await client.recommend(client_id="c")).request_id
            for wrong in (None, Tls(cert=cert, key=key), Tls(ca)):
                async with AsyncClient(address, 3_000, tls=wrong) as client:
                    with pytest.raises(UnavailableError):
                        await client.recommend(client_id="c")
            context = ssl.create_default_context(cafile=ca)
            context.load_cert_chain(cert, key)
            url = f"https://127.0.0.1:{api.settings.scoring_http_port}/v1/recommend"
            async with httpx.AsyncClient(verify=context, trust_env=False) as web:
                assert (await web.post(url, json={"shopper": {"client_id": "c"}})).status_code == 200
            async with httpx.AsyncClient(verify=ssl.create_default_context(cafile=ca), trust_env=False) as web:
                with pytest.raises(httpx.TransportError):
                    await web.post(url, json={})

    asyncio.run(run())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scoring_tls_cert": "a.crt"}, "set both"),
        ({"scoring_tls_client_ca": "ca.crt"}, "scoring_tls_cert is not"),
        ({"scoring_tls_cert": "nowhere.crt", "scoring_tls_key": "nowhere.key"}, "scoring_tls_key=nowhere.key"),
    ],
)
def test_half_a_tls_setting_stops_the_start(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        asyncio.run(make_server(local_settings(tmp_path, **changes), []))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_server_tls_ca": "ca.pem", "model_server_tls_key": "key.pem"}, "model_server_tls_cert and model_server_tls_key"),
        ({"model_server_tls_cert": "cert.pem", "model_server_tls_key": "key.pem"}, "model_server_tls_ca is not"),
    ],
)
def test_half_a_callers_tls_setting_is_refused(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    settings = local_settings(tmp_path, **changes)
    with pytest.raises(SettingsError, match=said):
        Tls.of_settings(settings, "model_server_tls_ca", "model_server_tls_cert", "model_server_tls_key")


def test_a_taken_port_is_said_with_its_setting(tmp_path: Path) -> None:
    async def run() -> None:
        async with scoring_api(tmp_path) as api:
            with pytest.raises(ConflictError, match="LIVESHELF_SCORING_PORT"):
                await make_server(api.settings, api.methods)

    asyncio.run(run())
