"""`manta VERB --help`: the groups, and every key with its type, default and meaning."""

from __future__ import annotations

import textwrap
from enum import Enum

from omegaconf import DictConfig, OmegaConf

from conf import entry
from conf.keys import keys_of

EXAMPLES = {
    "batch": """  manta batch model=demo data=tickets
  manta batch model.path=MODEL data.input='in/*.parquet' data.prompt='{{ question }}' output.path=OUT
  manta batch model=demo data=tickets engine.num_replicas=2 sampling.max_tokens=64 output=jsonl
  manta batch model.path=MODEL data=openai_batch data.input=requests.jsonl output.path=OUT

The same command run again goes on where it ended; manta inspect OUT and manta redrive OUT look at and mend a job.""",
    "plan": """  manta plan model=demo data=tickets
  manta plan model.path=MODEL data.input='in/*.parquet' data.prompt='{{ q }}' hardware=h200 hardware.num_devices=2
  manta plan model=demo data=tickets plan.answer_job=OUT cluster.price_per_hour=2.5 --json

It takes what manta batch takes, and runs nothing.""",
    "serve": """  manta serve model=demo
  manta serve model.path=MODEL deployment.port=9000 engine.num_replicas=2
  manta serve model.path=MODEL engine=tp2_h200 deployment.vllm.enable_auto_tool_choice=true \\
      deployment.vllm.tool_call_parser=hermes
  manta serve model.path=MODEL task=embed
  manta serve model.path=MODEL deployment.models.vectors.model.path=OTHER deployment.models.vectors.task=embed \\
      deployment.models.vectors.engine=cpu
  manta serve model=demo deployment.detach=true
  manta serve status [NAME]
  manta serve stop [NAME] [--now]

It answers until Ctrl-C, which finishes the requests in flight; a second Ctrl-C stops at once. With
deployment.detach=true it goes on in the background; the same command with another configuration updates it while it
answers.""",
    "simulate": """  manta simulate trace=arrivals.csv
  manta simulate trace=arrivals.jsonl autoscale=slo autoscale.ttft_target_s=1 simulate.copies=20 --json
  manta simulate trace=arrivals.parquet replica.start_s=60 replica.prefill_tokens_per_s=40000 \\
      cluster.price_per_hour=2.5 simulate.plot_file=fleet.html

It starts nothing: replicas are as fast, and start as slowly, as replica.* says.""",
    "optimize": """  manta optimize model=demo recipe=w8a8
  manta optimize model.path=MODEL recipe=w4a16 data.input=rows.jsonl data.prompt='{{ question }}' output.path=OUT
  manta optimize model=demo recipe=w8a8_static data=tickets examples.rows=256
  manta optimize model=demo recipe=w4a16 data=tickets recipe.steps.quantize.quantize.group_size=32 --cfg job

The same command run again does only what is not done; then manta batch model=NAME and manta serve model=NAME find the
result (NAME is MODEL-RECIPE, or name=NAME).""",
    "cluster": """  manta cluster up cluster=local cluster.nodes=3
  manta cluster up cluster=local_autoscaled cluster.max_nodes=4
  manta cluster status [NAME] [--json]
  manta batch model=demo data=tickets cluster=running
  manta cluster down [NAME]

A cluster has ports, a folder and a token of its own, and stays until manta cluster down. Several run side by side under
names of their own: manta cluster up cluster.name=NAME.""",
    "evaluate": """  manta evaluate model=demo data=tickets
  manta evaluate model=out/demo-w8a8 data=tickets parent=demo
  manta evaluate model.path=MODEL data.input=test.jsonl data.prompt='{{ question }}' data.answer=answer \\
      quality.metrics=[exact,number] output.path=CARD --json

The card, card.md and card.json, lies beside the model; manta compare A B C puts cards side by side.""",
    "render": """  manta cluster render cluster=aws --out FOLDER
  manta cluster render cluster=gcp cluster.gcp.project=PROJECT cluster.workers.gpu_spot.max_nodes=16
  manta cluster render cluster=on_prem cluster.on_prem.head_ip=10.0.0.1 cluster.on_prem.worker_ips=[10.0.0.2,10.0.0.3]
  manta cluster render cluster=kuberay cluster.image.gpu=REGISTRY/manta:TAG cluster.model=/data/models/mine
  manta cluster render cluster=kuberay_tpu_v6e cluster.workers.tpu-v6e-16.max_nodes=4

cluster stands for fleet, as the group and the keys are called below. Files go to --out, or out/render/NAME-PROVIDER;
nothing is started. docs/real_clusters.md says what each file is for.""",
    "submit": """  manta submit batch model=demo data=tickets
  manta submit batch model.path=/shared/MODEL data.input=s3://BUCKET/in/ data.prompt_file=ask.jinja \\
      submit.files=[ask.jinja] output.path=s3://BUCKET/out cluster.jobs_url=http://HEAD:8265
  manta submit serve model=demo
  manta submit batch ... --no-wait
  manta jobs list
  manta jobs logs ID --follow
  manta jobs stop ID

It takes what the verb takes. The same command again follows the job that runs, and tells of the one that is done;
--again runs it once more. Ctrl-C stops following, and the job goes on.""",
}


def help_text(name: str, what: str, width: int = 118, command: str | None = None) -> str:
    """Returns the help of a verb; ``command`` is what is typed for it, where that is not its name."""
    defaults, typed = entry.compose_config(name), command or name
    lines = [f"manta {typed}: {what}", "", f"usage: manta {typed} [group=option ...] [key=value ...]", ""]
    lines += ["examples:", EXAMPLES[name], "", "groups (a whole choice at once):"]
    lines += [f"  {group}={'|'.join(entry.options(group))}" for group in entry.groups(name)]
    lines += ["", "keys:"]
    for key in keys_of(entry.SCHEMAS[name]):
        lines.append(f"  {key.name}={_default(defaults, key.name)}  ({key.type_name})")
        lines += textwrap.wrap(key.doc, width, initial_indent="      ", subsequent_indent="      ")
    if command is None:
        lines += ["", "options: --cfg job prints the whole configuration, --cfg job -p engine a part of it, --resolve"]
    return "\n".join(lines)


def _default(defaults: DictConfig, name: str) -> str:
    """The value that holds when nothing is typed, as it would be typed."""
    parent, _, leaf = name.rpartition(".")
    node = OmegaConf.select(defaults, parent) if parent else defaults
    value = OmegaConf.to_container(node)[leaf]  # type: ignore[index, call-overload]
    if value is None:
        return "null"
    if isinstance(value, dict) and any(isinstance(part, dict) for part in value.values()):
        # parts of many keys each, such as a recipe's steps: --cfg job prints them
        return "{" + ", ".join(f"{part}: ..." for part in value) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value.name) if isinstance(value, Enum) else str(value)
