"""Starts all peers, asks them in turns, and prints tables of ratios: medians of rounds, with their spread.

Groups of measurements: start, graphs, sizes, layers, parts, sweeps, circuits, generation, llama, sae.
"""

import os
import statistics
import subprocess
import sys
import time

ours, checkpoint, llama, rounds = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
here = os.path.dirname(os.path.abspath(__file__))
python = os.environ["PEERS_PYTHON"]
SIZES = [(1, 16), (1, 128), (8, 128), (1, 1024)]


class Peer:
    """A process that answers lines, and how many milliseconds it took from its start to its first logits."""

    def __init__(self, name, checkpoint=checkpoint):
        self.name = name
        environment = dict(os.environ)
        if name == "ours":
            command = [ours, checkpoint]
        else:
            own = os.environ["PEERS_SAELENS"] if name == "saelens" else python
            command = [own, os.path.join(here, "peer.py"), name, checkpoint]
            folder = {"tl39": "PEERS_TL39", "tl43": "PEERS_TL43"}.get(name)
            if folder and os.environ.get(folder):
                environment["PYTHONPATH"] = os.environ[folder]
            environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        start = time.perf_counter()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        for line in self.process.stdout:
            if line.strip() == "first":  # what else libraries print to their standard output is not ours to read
                break
        else:
            sys.exit(f"{name} did not start; what it says of that: {' '.join(command)}")
        self.started = 1e3 * (time.perf_counter() - start)

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def median(times):
    return statistics.median(times)


def spread(times):
    """The middle half of the rounds around their median, in percent."""
    if len(times) < 3:
        return 0.0
    low, _, high = statistics.quantiles(times, n=4)
    return 50 * (high - low) / median(times)


def in_turns(questions):
    """Milliseconds of each (peer, line), by rounds."""
    times = {question: [] for question in questions}
    for peer, line in questions:
        peer.ask(line)
    for _ in range(rounds):
        for peer, line in questions:
            times[peer, line].append(peer.ask(line))
    return times


def ratio(times, above, below):
    """The median of the ratios within each round, and their spread."""
    ratios = [a / b for a, b in zip(times[above], times[below])]
    return median(ratios), spread(ratios)


rows = []


def row(what, value, bound, at_least=False):
    met = value[0] >= bound if at_least else value[0] <= bound
    rows.append((what, f"{value[0]:.3f}", f"± {value[1]:.0f} %", f"{'≥' if at_least else '≤'} {bound}", "yes" if met else "NO"))


def start():
    starts = {name: [] for name in ("ours", "tl43")}
    for _ in range(rounds):
        for name in starts:
            peer = Peer(name)
            starts[name].append(peer.started)
            if name == "ours":
                peer.ask("forward 1 128")
                memory = peer.ask("memory")
            peer.end()
    value = median(starts["ours"]) / median(starts["tl43"])
    row(f"start to first logits / TransformerLens 4.3's ({median(starts['ours']):.0f} / {median(starts['tl43']):.0f} ms)", (value, spread(starts["ours"])), 0.10)
    row("peak memory, load and one run at 1 x 128 / weights", (memory, 0), 1.5)


def sizes():
    print(f"{'batch x pos':<12}{'peer':<14}{'forward':>18}{'full cache':>18}{'resid_post':>18}")
    for batch, pos in SIZES:
        size = f"{batch} {pos}"
        # What is compared stands side by side, as the machine's own rate drifts within a round.
        rate = ["transformers peak"] if (batch, pos) == (8, 128) else []
        order = ["transformers forward", *rate, "ours forward", "ours cache", "tl43 cache", "tl43 resid", "ours resid"]
        order += ["tl43 forward", "tl39 forward", "tl39 cache", "tl39 resid"]
        asked = [question.split() for question in order]
        questions = [(peers[name], what if what == "peak" else f"{what} {size}") for name, what in asked]
        times = in_turns(questions)
        for peer in peers.values():
            cells = [times.get((peer, f"{what} {size}")) for what in ("forward", "cache", "resid")]
            cells = "".join(f"{f'{median(t):.1f} (± {spread(t):.0f} %)' if t else '':>18}" for t in cells)
            print(f"{f'{batch} x {pos}':<12}{peer.name:<14}{cells}", flush=True)
        at = f"at {batch} x {pos}"
        row(f"forward / transformers {at}", ratio(times, (us, f"forward {size}"), (peers["transformers"], f"forward {size}")), 0.95)
        if pos <= 128:
            row(f"full cache / own forward {at}", ratio(times, (us, f"cache {size}"), (us, f"forward {size}")), 1.10)
        bound = {(1, 128): 0.80, (8, 128): 0.65, (1, 1024): 0.40}.get((batch, pos))
        if bound:
            row(f"full cache / TransformerLens 4.3's {at}", ratio(times, (us, f"cache {size}"), (peers["tl43"], f"cache {size}")), bound)
        if (batch, pos) == (1, 1024):
            row(f"resid_post only / TransformerLens 4.3's {at}", ratio(times, (us, f"resid {size}"), (peers["tl43"], f"resid {size}")), 0.40)
        if (batch, pos) == (8, 128):
            flops = 2 * batch * pos * (12 * 12 * 768 * 768 + 768 * 50257)  # of the weights; attention's own come on top
            peaks = times[peers["transformers"], "peak"]
            rates = [(flops / (ms * 1e-3) / 1e9, most) for ms, most in zip(times[us, f"forward {size}"], peaks)]
            shares = [achieved / most for achieved, most in rates]
            row(f"achieved / peak matrix-product rate {at} (peak {median(peaks):.0f} GFLOP/s)", (median(shares), spread(shares)), 0.85, True)


def layers():
    times = in_turns([(us, "forward 1 128")] + [(us, f"layer {layer} 1 128") for layer in (0, 5, 11)])
    for layer in (0, 5, 11):
        bound = round((layer + 1) / 12 + 0.05, 3)
        row(f"layer {layer}'s resid_post, no logits / forward at 1 x 128", ratio(times, (us, f"layer {layer} 1 128"), (us, "forward 1 128")), bound)


def parts():
    for what, line, bound in [
        ("all neurons' and heads' parts in a logit at 1 x 32", "full 1 32", 0.15),
        ("all heads' parts in a logit at 1 x 128", "heads 1 128", 0.10),
    ]:
        times = in_turns([(peer, line) for peer in (us, *lenses)])
        took = ", ".join(f"{peer.name} {median(t):.1f} (± {spread(t):.0f} %)" for (peer, _), t in times.items())
        print(f"{what}: {took}", flush=True)
        row(f"{what} / TransformerLens 4.3's", ratio(times, (us, line), (peers["tl43"], line)), bound)


def sweeps():
    # A sweep of TransformerLens takes minutes, so it is asked once, without a round to warm up.
    for what, sites, patches in [
        ("all layers and positions of resid_pre", ["resid_pre"], 12 * 15),
        ("all heads' outputs", ["z"], 144),
        ("all heads' q, k, v and patterns", ["q", "k", "v", "pattern"], 4 * 144),
    ]:
        times = in_turns([(us, "forward 2 15")] + [(us, f"sweep {site}") for site in sites])
        took = [sum(of_round) for of_round in zip(*(times[us, f"sweep {site}"] for site in sites))]
        alone = [patches * forward for forward in times[us, "forward 2 15"]]
        row(f"sweep of {what} / as many own forward passes", ratio({"a": took, "b": alone}, "a", "b"), 0.35)
        for peer in lenses:
            theirs = sum(peer.ask(f"sweep {site}") for site in sites)
            print(f"sweep of {what}: ours {median(took):.0f} (± {spread(took):.0f} %), {peer.name} {theirs:.0f}", flush=True)
            row(f"sweep of {what} / {peer.name}'s", (median(took) / theirs, spread(took)), 0.20)


def circuits():
    times = in_turns([(us, "eap"), (peers["tl39"], "eap")])
    took = ", ".join(f"{peer.name} {median(t):.0f} (± {spread(t):.0f} %)" for (peer, _), t in times.items())
    print(f"EAP of all 32,491 edges, two prompts of 15 tokens: {took}", flush=True)
    row("EAP of all edges / by autograd over TransformerLens 3.9", ratio(times, (us, "eap"), (peers["tl39"], "eap")), 0.3)


def generate(shape, us, others):
    for batch in (1, 8):
        line = f"generate {batch} 16 64"
        # TransformerLens takes minutes at batch 8.
        times = in_turns([(peer, line) for peer in (*others[: 2 if batch == 1 else 1], us)])
        took = ", ".join(f"{peer.name} {64e3 * batch / median(t):.1f} (± {spread(t):.0f} %)" for (peer, _), t in times.items())
        print(f"tokens/s of {batch} x 64 tokens after 16, {shape}: {took}", flush=True)
        row(f"tokens/s / transformers' generate, {batch} x 64 tokens after 16, {shape}", ratio(times, (others[0], line), (us, line)), 1.5, True)


def generation():
    generate("GPT-2", us, [peers["transformers"], peers["tl39"]])
    times = in_turns([(us, "late 100"), (us, "late 900"), (us, "late 16"), (us, "bandwidth")])
    row("a token behind 900 positions / behind 100", ratio(times, (us, "late 900"), (us, "late 100")), 1.3)
    read = us.ask("weights")
    shares = [read / rate / ms for rate, ms in zip(times[us, "bandwidth"], times[us, "late 16"])]  # MB / (GB/s) is ms
    rate = median(times[us, "bandwidth"])
    row(f"reading {read:.0f} MB of weights ({rate:.0f} GB/s) / a token behind 16 positions", (median(shares), spread(shares)), 0.7, True)
    times = in_turns([(us, "prefix 512 16 16"), (us, "apart 512 16 16")])
    row("16 x 16 tokens behind a shared prefix of 512 / each by itself", ratio(times, (us, "prefix 512 16 16"), (us, "apart 512 16 16")), 0.2)


def of_llama():
    llamas = [Peer(name, llama) for name in ("ours", "transformers")]
    generate("Llama", llamas[0], llamas[1:])
    for peer in llamas:
        peer.end()


def graphs():
    """Attribution graphs beside circuit-tracer's, each in a process of its own."""
    repository = os.path.join(here, "..", "..")
    made = os.path.join(here, "made")
    toy = os.path.join(repository, "models", "toy")
    for what, model, transcoders, positions, nodes in [
        ("toy", toy, "transcoders_toy", 64, 1000),
        ("GPT-2 small's shape", checkpoint, "transcoders_gpt2", 64, 512),
    ]:
        arguments = [model, os.path.join(made, transcoders), str(positions), str(nodes)]
        binary = os.path.join(os.path.dirname(ours), "graph_peer")
        commands = {
            "ours": [binary, *arguments],
            "a quarter": [binary, *arguments, "budget"],
            "circuit-tracer": [python, os.path.join(here, "graph_peer.py"), *arguments],
        }
        folders = [folder for folder in (os.environ.get("PEERS_CT"), os.environ.get("PEERS_TL39")) if folder]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders), "HF_HUB_OFFLINE": "1"}
        found = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                answer = subprocess.run(command, env=environment, capture_output=True, text=True)
                if answer.returncode:
                    sys.exit(f"{name} failed: {answer.stderr}")
                found[name].append([float(number) for number in answer.stdout.split()[-3:]])
        for name, rows_of in found.items():
            ms, peak, edges = (median(numbers) for numbers in zip(*rows_of))
            print(f"graph of {nodes} nodes, {what}: {name} {ms:.0f} ms, {peak / 1e6:.0f} MB, edges of {edges:.4g}", flush=True)
        by = {(name, i): [row[i] for row in rows_of] for name, rows_of in found.items() for i in range(3)}
        for name in ("ours", "a quarter"):
            budget = "" if name == "ours" else ", in a quarter of the dense matrix"
            row(f"graph of {nodes} nodes, {what}{budget}: time / circuit-tracer's", ratio(by, (name, 0), ("circuit-tracer", 0)), 0.25)
            row(f"graph of {nodes} nodes, {what}{budget}: peak memory / circuit-tracer's", ratio(by, (name, 1), ("circuit-tracer", 1)), 0.5)
            apart = [abs(a / b - 1) for a, b in zip(by[name, 2], by["circuit-tracer", 2])]
            row(f"graph of {nodes} nodes, {what}{budget}: difference of the sum of edges", (max(apart), 0), 0.001)


def sae():
    saelens = Peer("saelens")
    for kind, what in [("relu", "ReLU, 60 features a token"), ("topk", "TopK 32")]:
        line = f"saes_{kind} 1 128"
        order = [(us, "forward 1 128"), (us, line), (saelens, "forward 1 128"), (saelens, line)]
        times = in_turns(order)
        over = {peer: [b - a for a, b in zip(times[peer, "forward 1 128"], times[peer, line])] for peer in (us, saelens)}
        took = ", ".join(f"{peer.name} {median(t):.1f} (± {spread(t):.0f} %)" for peer, t in over.items())
        print(f"12 SAEs of 24,576 features ({what}) over the bare pass at 1 x 128: {took}", flush=True)
        row(f"12 SAEs of 24,576 features ({what}) over the bare pass / SAELens'", ratio(over, us, saelens), 0.5)
    saelens.end()


GROUPS = {"start": start, "graphs": graphs, "sizes": sizes, "layers": layers, "parts": parts, "sweeps": sweeps, "circuits": circuits, "generation": generation, "llama": of_llama, "sae": sae}
chosen = sys.argv[5:] or list(GROUPS)
unknown = [name for name in chosen if name not in GROUPS]
if unknown:
    sys.exit(f"no group is named {', '.join(unknown)}; there are {', '.join(GROUPS)}")

print(f"{os.cpu_count()} cores; {rounds} rounds in turns; milliseconds: median (± half of the middle half, %)\n", flush=True)
ALONE = ["start", "graphs"]  # nothing else is alive
for name in ALONE:
    if name in chosen:
        GROUPS[name]()
peers = {}
if set(chosen) - set(ALONE):
    peers = {name: Peer(name) for name in ("ours", "transformers", "tl39", "tl43")}
    us, lenses = peers["ours"], [peers["tl39"], peers["tl43"]]
for name in chosen:
    if name not in ALONE:
        GROUPS[name]()
for peer in peers.values():
    peer.end()

print(f"\n{'':<86}{'ratio':>8}  {'spread':<8}{'bound':<8}met")
for what, value, around, bound, met in rows:
    print(f"{what:<86}{value:>8}  {around:<8}{bound:<8}{met}")
