"""Asks a Beam job server which options it takes: the proof that it is one, and that it answers."""

from collections.abc import Iterable

from headrace.runners.finding import Finding

NAME = "job server"


def check_job_server(endpoint: str, seconds: float, needed: Iterable[str] = (), engine: str = "") -> Finding:
    """Connects and asks.

    Args:
        endpoint: ``HOST:PORT``.
        seconds: how long it may take.
        needed: options that it has to know.
        engine: what it is the job server of, for the message.
    """
    import grpc

    try:
        known = described_options(endpoint, seconds)
    except grpc.FutureTimeoutError:
        return Finding(
            NAME,
            "wrong",
            f"nobody answers at {endpoint} within {seconds:g} s",
            "start it, or correct --job_endpoint; on this machine: headrace cluster up flink",
        )
    except grpc.RpcError as error:
        return Finding(
            NAME,
            "wrong",
            f"what answers at {endpoint} is no job server of Beam ({error.code().name})",
            "correct --job_endpoint",
        )
    missing = [name for name in needed if name not in known]
    if missing:
        return Finding(
            NAME,
            "wrong",
            f"{endpoint} answers, but does not know {', '.join(missing)}",
            f"use a job server of Beam for {engine}, 2.60 or later",
        )
    return Finding(NAME, "ok", f"answers at {endpoint}, {len(known)} options")


def described_options(endpoint: str, seconds: float) -> set[str]:
    """Returns the names of the options that a job server takes.

    Raises:
        grpc.FutureTimeoutError: nobody answers.
        grpc.RpcError: what answers is no job server.
    """
    import grpc
    from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

    with grpc.insecure_channel(endpoint, options=[("grpc.enable_http_proxy", 0)]) as channel:
        grpc.channel_ready_future(channel).result(timeout=seconds)
        answer = beam_job_api_pb2_grpc.JobServiceStub(channel).DescribePipelineOptions(
            beam_job_api_pb2.DescribePipelineOptionsRequest(), timeout=seconds
        )
    return {option.name for option in answer.options}
