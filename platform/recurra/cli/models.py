"""recurra models list, show, promote, rollback, history."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recurra.cli.options import DEFAULT_REGISTRY, Json, Registry
from recurra.cli.output import count, emit_json, note, number, say, show_facts, show_table, size

if TYPE_CHECKING:
    from recurra.registry.bundle import Bundle
    from recurra.registry.registry import Registry as RegistryStore

models_app = typer.Typer(help="What has been published, and which version an alias means.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.", show_default=False)]
Alias = Annotated[str, typer.Argument(metavar="ALIAS", help="Such as 'production'.", show_default=False)]
Reason = Annotated[str, typer.Option("--reason", "-m", help="For the history.", show_default=False)]


def register(app: typer.Typer) -> None:
    app.add_typer(models_app, name="models", rich_help_panel="Models")


@models_app.command("list")
def list_models(registry: Registry = DEFAULT_REGISTRY, json: Json = False) -> None:
    """List all models with their aliases.

    Example: recurra models list --registry s3://recurra/registry
    """
    found = _open(registry).models()
    if json:
        emit_json([asdict(entry) for entry in found])
    elif not found:
        note(f"{registry} has no models yet. A job file with a 'publish' section puts one there.")
    else:
        rows = [(entry.name, _aliases(entry.aliases) or "-", entry.bundles) for entry in found]
        show_table(("model", "aliases", "bundles"), rows, right=("bundles",))


@models_app.command()
def show(
    reference: Annotated[
        str, typer.Argument(metavar="MODEL[@VERSION]", help="name, name@alias or name@digest.", show_default=False)
    ],
    registry: Registry = DEFAULT_REGISTRY,
    json: Json = False,
) -> None:
    """Show one bundle's card: metrics, costs, data, limits, a request; without a version, all bundles, too.

    Example: recurra models show sentiment@production
    """
    store = _open(registry)
    name, _, version = reference.partition("@")
    bundle = store.bundle(name, store.resolve(reference))
    every = [] if version else store.bundles(name)
    request = _request_schema(bundle)
    if json:
        shown = {**asdict(bundle), "request_schema": request}
        emit_json({**shown, "bundles": [asdict(one) for one in every]} if every else shown)
        return
    _show_bundle(name, bundle, request, store.aliases(name))
    if len(every) > 1:
        rows = [(one.digest[:12], one.created[:19], _metrics(one)) for one in reversed(every)]
        show_table(("bundle", "published (UTC)", "metrics"), rows)


@models_app.command()
def promote(
    reference: Annotated[
        str, typer.Argument(metavar="MODEL@VERSION", help="name@alias or name@digest.", show_default=False)
    ],
    alias: Alias,
    reason: Reason = "",
    registry: Registry = DEFAULT_REGISTRY,
    json: Json = False,
) -> None:
    """Point an alias at a bundle.

    Example: recurra models promote sentiment@candidate production -m "2 points better"
    """
    from recurra.errors import RegistryError

    name, at, version = reference.partition("@")
    if not at or not version:
        raise RegistryError(f"'{reference}' does not say which bundle. Write {name}@candidate or {name}@<digest>.")
    _changed(name, alias, _open(registry).promote(name, version, alias, reason), json=json)


@models_app.command()
def rollback(
    model: Name, alias: Alias, reason: Reason = "", registry: Registry = DEFAULT_REGISTRY, json: Json = False
) -> None:
    """Point an alias at what it meant before its last promotion.

    Example: recurra models rollback sentiment production -m "too slow"
    """
    _changed(model, alias, _open(registry).rollback(model, alias, reason), json=json)


@models_app.command()
def history(model: Name, registry: Registry = DEFAULT_REGISTRY, json: Json = False) -> None:
    """Show every change of a model's aliases, newest last.

    Example: recurra models history sentiment
    """
    entries = _open(registry).history(model)
    if json:
        emit_json([asdict(entry) for entry in entries])
        return
    rows = [
        (entry.time[:19].replace("T", " "), entry.action, entry.alias, entry.digest[:12], entry.actor, entry.reason)
        for entry in entries
    ]
    show_table(("time (UTC)", "action", "alias", "bundle", "by", "reason"), rows)


def _open(url: str) -> RegistryStore:
    from recurra.orchestration.local_platform import join_local_platform
    from recurra.registry.registry import Registry

    join_local_platform()
    return Registry(url)


def _changed(name: str, alias: str, digest: str, *, json: bool) -> None:
    if json:
        emit_json({"model": name, "alias": alias, "digest": digest})
    else:
        say(f"{name}@{alias} is now {digest[:12]}.", style="green")
        note("Replicas that serve this alias take it up when they are deployed again: recurra deploy FILE")


def _show_bundle(name: str, bundle: Bundle, request: dict[str, Any], aliases: dict[str, Any]) -> None:
    meant = [alias for alias, digest in sorted(aliases.items()) if digest == bundle.digest]
    config = bundle.model
    show_facts(
        (
            ("model", f"{name}@{bundle.digest[:12]}"),
            ("aliases", ", ".join(meant) or "-"),
            ("published", f"{bundle.created[:19].replace('T', ' ')} UTC"),
            ("task", bundle.task.get("kind", "-")),
            ("network", f"{config.get('cell')}, {config.get('layers')} x {config.get('hidden_size')} units"),
            ("weights", _weights(bundle)),
            *_costs(bundle.card),
            ("metrics", _metrics(bundle) or "-"),
            *_data(bundle),
            ("run", f"{bundle.lineage.get('run', '-')}, update {bundle.lineage.get('step', '-')}"),
            ("digest", bundle.digest),
            ("instance", _sketch(request)),
            *[("limits" if place == 0 else "", text) for place, text in enumerate(bundle.card.get("limits", []))],
        )
    )


def _weights(bundle: Bundle) -> str:
    parameters = bundle.card.get("parameters")
    return f"{count(parameters)} parameters, {size(bundle.weights_bytes)}" if parameters else size(bundle.weights_bytes)


def _costs(card: dict[str, Any]) -> list[tuple[str, str]]:
    """Of one sequence; nothing for a bundle that was published without a card."""
    if not card:
        return []
    state = size(card["state_bytes"]) if card["sessions"] else "none: it reads whole sequences"
    costs = [("session", state), ("one step", f"{count(card['flops_per_step'])} FLOPs")]
    if int8 := card.get("int8"):
        exact, rounded = int8["float32"], int8["int8"]
        losses = (
            f"{name} {number(value)} -> {number(rounded['metrics'][name])}" for name, value in exact["metrics"].items()
        )
        times = f"{int8['speedup']:g} times faster ({exact['step_us']:g} -> {rounded['step_us']:g} us a step)"
        costs.append(("int8", ", ".join([times, *losses])))
    return costs


def _data(bundle: Bundle) -> list[tuple[str, str]]:
    """Each dataset with its size, and the hash of the one that it was trained on."""
    known = bundle.card.get("data", {})
    if not known:
        return [("data", bundle.data_digest[:12] or "-")]
    names = {"train": "trained on", "eval": "measured on"}
    facts = [
        (names[split], f"{data['url']}, {data['sequences']:,} sequences, {count(data['steps'])} steps")
        for split, data in sorted(known.items(), reverse=True)
    ]
    return [*facts, ("data hash", bundle.data_digest)]


def _request_schema(bundle: Bundle) -> dict[str, Any]:
    from recurra.tasks.build import task_from_description

    return task_from_description(bundle.task).request_schema()


def _sketch(schema: dict[str, Any]) -> str:
    """The fields of one instance of a request, in short."""
    fields = schema.get("properties")
    if not isinstance(fields, dict):
        return str(schema.get("description", schema.get("type", "-")))
    required = schema.get("required", [])
    return ", ".join(name if name in required else f"[{name}]" for name in fields)


def _aliases(aliases: dict[str, Any]) -> str:
    return ", ".join(f"{alias} {digest[:12]}" for alias, digest in sorted(aliases.items()))


def _metrics(bundle: Bundle) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in sorted(bundle.metrics.items()) if value is not None)
