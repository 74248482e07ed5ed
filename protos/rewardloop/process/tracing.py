"""Starts OpenTelemetry traces if a collector is named. Otherwise none of OpenTelemetry's packages is imported."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic_settings import BaseSettings, SettingsConfigDict

_PATH = "/v1/traces"


class _Environment(BaseSettings):
    """The standard variables that say whether there is a collector. The SDK reads these and all others itself."""

    model_config = SettingsConfigDict(env_prefix="OTEL_", frozen=True, extra="ignore")

    sdk_disabled: bool = False
    service_name: str = ""
    exporter_otlp_endpoint: str = ""
    exporter_otlp_traces_endpoint: str = ""


def start_tracing(service: str, endpoint: str) -> bool:
    """Send the spans of this process to a collector.

    Args:
        service: Name of the service, unless OTEL_SERVICE_NAME gives another.
        endpoint: OTLP/HTTP address of the collector, such as http://127.0.0.1:4318; empty for the address in the
            OTEL_EXPORTER_OTLP_* variables.

    Returns:
        False if no collector is named, so that there are no traces.

    Raises:
        SystemExit: A collector is named, but the extra "tracing" is not installed.
    """
    standard = _Environment()
    is_named = endpoint or standard.exporter_otlp_endpoint or standard.exporter_otlp_traces_endpoint
    if not is_named or standard.sdk_disabled:
        return False
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SystemExit(f"tracing needs more packages: pip install 'rewardloop[tracing]' ({error})") from error
    name = {} if standard.service_name else {"service.name": service}
    provider = TracerProvider(resource=Resource.create(name))
    exporter = OTLPSpanExporter(endpoint=_with_path(endpoint)) if endpoint else OTLPSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return True


def _with_path(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    return endpoint if parts.path.strip("/") else parts._replace(path=_PATH).geturl()
