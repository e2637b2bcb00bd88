"""Operators and a gateway of several processes: each worker answers them, on a port of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.home import Home
from adapters.keyring import create_key
from adapters.registry import Registry
from tests.admin_client import V1, Person
from tests.gateway_parts import make_stock
from tests.gateway_process import branchline, serving
from tests.test_router_app import body, require_error

WORKERS = 2
ASKED = 12


def test_every_worker_answers_operators_on_their_port_and_says_what_all_workers_have_in_force(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root: Path = tmp_path_factory.mktemp("stock")
    stock = make_stock(root, versions=1, routes=["sql"])
    registry = Registry.open(Home.at(stock.home).registry_url)
    secret = create_key(registry, "boss", "admin").secret
    registry.close()
    words = ("--backend", "echo", "--base", str(stock.base.folder), "--workers", str(WORKERS))
    with serving(stock.home, *words, "--admin-port", "0", "--lora-folder", str(root)) as gateway:
        apart = gateway.wait_for(r"operators are answered on (http://\S+)/admin/v1 alone").group(1)
        main = Person(gateway.url, secret)
        with main.client:
            for path in (f"{V1}/routes", f"{V1}/engines", "/v1/load_lora_adapter"):
                require_error(main.ask("GET", path), 404, "unknown_url")
            for number in range(ASKED):
                boss = Person(apart, secret)  # a connection of its own, which any worker may take
                with boss.client:
                    action = "disable" if number % 2 == 0 else "enable"
                    done = boss.done("POST", f"{V1}/routes/sql/{action}?wait=20", {}, idempotency_key=f"k{number}")
                    assert (len(done["in_force"]["gateways"]), done["in_force"]["problems"]) == (1, {})
                    assert (
                        boss.done("POST", f"{V1}/routes/sql/{action}", {}, idempotency_key=f"k{number}")["event"]
                        == (done["event"])
                    )
                    require_error(boss.ask("POST", "/v1/chat/completions", body("sql")), 404, "unknown_url")
            boss = Person(apart, secret)
            with boss.client:
                loaded = boss.ask(
                    "POST",
                    "/v1/load_lora_adapter",
                    {"lora_name": "sql", "lora_path": stock.folders[0].name},
                    x_branchline_force="a test",
                )
                assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'sql' added successfully.")
            assert main.done("POST", "/v1/chat/completions", body("sql"))["model"].startswith("sql@1.")
        history = branchline("route", "history", "sql", home=stock.home)
        assert history.count("key:boss") == ASKED + 1
        assert secret not in gateway.output
