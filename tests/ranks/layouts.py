#!/usr/bin/env python3
"""Layouts agree: the same few steps on 1, 2, 4, 8 ranks, compared tensor by tensor. A line a case, as cmocka
writes them.

    layouts.py RANKS_TRAIN [--hooks] [NAME…]
"""
import array
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile

PROGRAM = os.path.abspath(sys.argv[1])
HOOKS = "--hooks" in sys.argv
NAMES = [word for word in sys.argv[2:] if word != "--hooks"]
FOLDER = tempfile.mkdtemp(prefix="ranks-")
CONFIG = {"tied": "true", "untied": "false"}
RANKS = (2, 4, 8)


def config_text(tied, layers=2, heads=4):
    return ('{"architectures":["Qwen3ForCausalLM"],"model_type":"qwen3","hidden_size":24,"intermediate_size":40,'
            '"num_hidden_layers":%d,"num_attention_heads":%d,"num_key_value_heads":2,"head_dim":16,"vocab_size":97,'
            '"max_position_embeddings":128,"rms_norm_eps":1e-6,"rope_theta":1000000.0,"hidden_act":"silu",'
            '"attention_bias":false,"initializer_range":0.05,"tie_word_embeddings":%s}' % (layers, heads, CONFIG[tied]))


def recipe_text(steps, batch, micro):
    return (f"data: {FOLDER}/data\norder: sorted\nsteps: {steps}\nglobal_batch: {batch}\n{micro}\n"
            "optimizer: {lr: 3e-3, clip: 1.0, weight_decay: 0.01}\nschedule: {kind: cosine, warmup_steps: 2}\n"
            "checkpoint: {every: 0, keep: 1}\n")


def environment():
    return dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                OMPI_MCA_rmaps_base_oversubscribe="1", OMP_NUM_THREADS="1",
                OMPI_MCA_btl_vader_single_copy_mechanism="none")


def launch(ranks, arguments):
    done = subprocess.run(["mpirun", "-n", str(ranks), PROGRAM, *arguments], env=environment(), timeout=300,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{ranks} ranks, {arguments}: exit {done.returncode}\n{done.stderr[-2000:]}")


class Skipped(Exception):
    pass


def needs_hooks():
    if not HOOKS:
        raise Skipped("this build has no test hooks")


class Result:
    def __init__(self, out):
        self.tensors, self.steps, self.labelled, self.sent, self.collectives = [], [], 0, [], []
        with open(f"{out}/steps") as file:
            for line in file:
                words = line.split()
                if words[0] == "tensor":
                    self.tensors.append((words[1], int(words[2])))
                elif words[0] == "skipped":
                    self.skipped = (int(words[1]), words[2])
                elif words[0] == "evaluation":
                    self.evaluation = float.fromhex(words[1])
                else:
                    self.steps.append(tuple(float.fromhex(w) for w in words[2:6]))
                    self.labelled = self.labelled or int(words[6])
                    self.collectives.append(int(words[9]))
                    self.sent.append((int(words[7]), int(words[8])))  # by rank 0 in that step, and as --dry-run plans it
        self.weights = self.read(f"{out}/weights")
        self.initial = self.read(f"{out}/initial")
        self.gradient = self.read(f"{out}/gradient")

    def read(self, path):
        values, at, found = array.array("f"), 0, {}
        with open(path, "rb") as file:
            values.frombytes(file.read())
        for name, count in self.tensors:
            found[name] = values[at:at + count]
            at += count
        if at != len(values):
            raise RuntimeError(f"{path} has {len(values)} values, not {at}")
        copies = array.array("f")
        with open(f"{path}.copies", "rb") as file:
            copies.frombytes(file.read())
        assert all(c in (0, v) or (c != c and v != v) for c, v in zip(copies, values)), f"{path}: a copy on another rank differs"
        return found


def run(name, ranks, lanes=0, recompute=0, threads=1, policy="fp32-master+compute=fp32", tied="tied", steps=6, batch=13,
        micro="micro_batch: 2", device="cpu", stop_at=0, resume=None, layout="", zero=3, layers=2, heads=4):
    out = f"{FOLDER}/{name}"
    os.makedirs(out, exist_ok=True)
    for path, text in ((f"{out}/config.json", config_text(tied, layers, heads)), (f"{out}/recipe.yaml", recipe_text(steps, batch, micro))):
        with open(path, "w") as file:
            file.write(text)
    common = [out, device, layout, str(zero), str(lanes), str(recompute), str(threads)]
    if resume:
        launch(ranks, ["resume", *common, resume])
    else:
        launch(ranks, ["train", *common, policy, out, f"{out}/recipe.yaml", *([str(stop_at)] if stop_at else [])])
    return Result(out)


def norm_recomputed(result):
    """The reported norm against the gathered gradient of the same run, in double: catches what is counted twice."""
    squares = math.fsum(float(g) * float(g) for name, _ in result.tensors for g in result.gradient[name])
    norm = math.sqrt(squares) / result.labelled
    assert abs(norm - result.steps[0][1]) <= 1e-12 * norm, f"norm {result.steps[0][1]}, recomputed {norm}"


def near(one, other):
    """Loss and every gradient tensor to 1e-5 of its largest element; the norm to 1e-6."""
    norm_recomputed(other)
    sent, planned = other.sent[0]
    assert sent == planned, f"a step sent {sent} bytes, and {planned} were planned"
    for (loss, norm, *_), (loss2, norm2, *_) in list(zip(one.steps, other.steps))[:1]:
        assert abs(loss - loss2) <= 1e-6 * abs(loss), f"loss {loss} against {loss2}"
        assert abs(norm - norm2) <= 1e-6 * norm, f"norm {norm} against {norm2}"
    for name, _ in one.tensors:
        most = max(abs(g) for g in one.gradient[name])
        worst = max(abs(a - b) for a, b in zip(one.gradient[name], other.gradient[name]))
        assert most > 0, f"{name}: the gradient is all zero"
        assert worst <= 1e-5 * most, f"{name}: gradient differs by {worst / most:.3g} of its largest element"
    for (loss, *_), (loss2, *_) in zip(one.steps + [(one.evaluation,)], other.steps + [(other.evaluation,)]):
        assert abs(loss - loss2) <= 1e-5 * abs(loss), f"a later loss {loss} against {loss2}"


def same(one, other):
    """Equal bits: every loss, norm and weight."""
    assert [s[:2] for s in one.steps] == [s[:2] for s in other.steps], \
        f"losses or norms differ: {one.steps} against {other.steps}"
    assert one.evaluation == other.evaluation, f"evaluated {one.evaluation} and {other.evaluation}"
    for name, _ in one.tensors:
        assert one.gradient[name].tobytes() == other.gradient[name].tobytes(), f"{name}: gradient bits differ"
        assert one.weights[name].tobytes() == other.weights[name].tobytes(), f"{name}: weight bits differ"


def plain(tied):
    one = run(f"plain-{tied}-1", 1, tied=tied)
    for ranks in RANKS:
        near(one, run(f"plain-{tied}-{ranks}", ranks, tied=tied))


def lanes(compute, micro, batch):
    label = f"lanes-{compute}-{batch}-{micro.split(':')[0]}"
    policy = f"fp32-master+compute={compute}"
    one = run(f"{label}-1", 1, lanes=8, policy=policy, micro=micro, batch=batch)
    for ranks in RANKS:
        same(one, run(f"{label}-{ranks}", ranks, lanes=8, policy=policy, micro=micro, batch=batch))


def stochastic_policy():
    one = run("sr-1", 1, lanes=4, policy="bf16-sr")
    same(one, run("sr-4", 4, lanes=4, policy="bf16-sr"))


def quantized_policy():
    one = run("q8-1", 1, lanes=4, policy="fp24-q8")
    same(one, run("q8-2", 2, lanes=4, policy="fp24-q8"))


def split_is_fp32():
    """In fp32 compute, weights in two halves give fp32-master's bits, whatever is kept where."""
    master = run("split-master", 2)
    for zero in (2, 3):
        same(master, run(f"split-{zero}", 2, zero=zero, policy="fp32-split+compute=fp32"))


def weights_in_the_copy(policy):
    """A rank alone and ZeRO 1 and 2 keep w in the model's own copy, ZeRO 3 beside it: no bit depends on that."""
    keys = {"lanes": 4, "policy": policy}
    one = run(f"copy-{policy}", 1, **keys)
    for layout, zero in (("d2", 3), ("d2", 2), ("d4", 1), ("p2", 2)):
        same(one, run(f"copy-{policy}-{layout}-{zero}", ranks_of(layout), **keys, layout=layout, zero=zero))
    beside = run(f"copy-{policy}-d2t2-3", 4, **keys, layout="d2t2", zero=3)
    same(beside, run(f"copy-{policy}-d2t2-2", 4, **keys, layout="d2t2", zero=2))


def stop_and_resume(label, before, after, lanes=8):
    """Each of before and after: ranks and what else run() takes. The whole run is made as the second half is."""
    shutil.rmtree(f"{FOLDER}/checkpoints", ignore_errors=True)
    whole = run(f"whole-{label}", **after, lanes=lanes, batch=20)
    first = run(f"stopped-{label}", **before, lanes=lanes, batch=20, stop_at=3)
    rest = run(f"resumed-{label}", **after, lanes=lanes, resume="stopped")
    assert first.steps + rest.steps == whole.steps, f"{first.steps} + {rest.steps} against {whole.steps}"
    for name, _ in whole.tensors:
        assert whole.weights[name].tobytes() == rest.weights[name].tobytes(), f"{name}: weight bits differ"


def stop_and_resume_elsewhere():
    stop_and_resume("zero", {"ranks": 4, "zero": 1}, {"ranks": 2, "zero": 2})
    stop_and_resume("pipeline", {"ranks": 2, "layout": "p2", "zero": 1}, {"ranks": 4, "layout": "d2p2", "zero": 3})
    stop_and_resume("stages", {"ranks": 2, "tied": "untied"}, {"ranks": 2, "layout": "p2", "zero": 2, "tied": "untied"})
    split = {"policy": "fp32-split"}
    stop_and_resume("split", {"ranks": 4, "zero": 3, **split}, {"ranks": 2, "zero": 2, **split})
    stop_and_resume("context", {"ranks": 4, "layout": "d2c2"}, {"ranks": 2, "layout": "c2", "zero": 1}, lanes=4)


def recompute():
    same(run("kept", 2), run("recomputed", 2, recompute=1))


def threads():
    same(run("threads-1", 1, policy="fp32-master"), run("threads-2", 1, policy="fp32-master", threads=2))


def reduced_wire():
    """reduce=bf16 rounds what goes on the wire, and only that: near fp32, yet not equal to it."""
    exact, rounded = run("wire-32", 2), run("wire-16", 2, policy="fp32-master+compute=fp32+reduce=bf16")
    differing = 0
    for name, _ in exact.tensors:
        most = max(abs(g) for g in exact.gradient[name])
        worst = max(abs(a - b) for a, b in zip(exact.gradient[name], rounded.gradient[name]))
        assert worst <= 2 ** -7 * most, f"{name}: {worst / most:.3g}"
        differing += worst > 1e-5 * most
    assert differing == len(exact.tensors), f"only {differing} tensors show the wire's rounding"


def accumulate_bf16():
    exact, rounded = run("acc-32", 2), run("acc-16", 2, policy="fp32-master+compute=fp32+accumulate=bf16", steps=3)
    for (loss, *_), (loss2, *_) in list(zip(exact.steps, rounded.steps))[:3]:
        assert abs(loss - loss2) < 1e-2 * loss


CONTEXT_LAYOUTS = ("c2", "d2c2", "c4")


def ranks_of(layout):
    return math.prod(int(count) for count in re.findall(r"[dtpc](\d+)", layout))


def context(tied):
    """Sequences cut over c ranks, which other ranks' keys reach; packed, short and absent micro-batches among them."""
    one = run(f"context-{tied}-one", 1, tied=tied)
    for layout in CONTEXT_LAYOUTS:
        near(one, run(f"context-{tied}-{layout}", ranks_of(layout), layout=layout, tied=tied))
    packed = {"micro": "max_tokens: 100", "batch": 5, "tied": tied}
    near(run(f"context-{tied}-packed-one", 1, **packed), run(f"context-{tied}-packed", 4, layout="d2c2", zero=2, **packed))


def trained_alike(one, other):
    """Every loss to 1e-5, and what training did to each tensor to 1e-3 of its length."""
    for step, ((loss, *_), (loss2, *_)) in enumerate(zip(one.steps, other.steps)):
        assert abs(loss - loss2) <= 1e-5 * abs(loss), f"step {step + 1}: loss {loss} against {loss2}"
    for name, _ in one.tensors:
        assert one.initial[name].tobytes() == other.initial[name].tobytes(), f"{name} does not begin alike"
        way = math.dist(one.weights[name], one.initial[name])
        apart = math.dist(one.weights[name], other.weights[name])
        assert 0 < way and apart <= 1e-3 * way, f"{name}: after {len(one.steps)} steps {apart / way:.3g} of its way apart"


# Layout, ZeRO stage, recompute; then what a layer adds to a step of one micro-batch. t: a gather before and a reduction after each
# half of a block, forward; back, both halves' gradients and inputs gathered and the inputs' gradients reduced, and with recompute the
# forward once more without its last reduction and without the gather that the backward would repeat; and the norms' sums, once a step.
# c: keys and values gathered, forward and back, and their gradients exchanged. d x c: weights gathered once or, under stage 3, twice,
# and gradients exchanged.
COLLECTIVES = (("d2", 3, 0, 3), ("d2", 1, 0, 2), ("t2", 3, 0, 10 + 1), ("t2", 3, 1, 12 + 1), ("c2", 1, 0, 6 + 2), ("c2", 3, 1, 8 + 3))


def collectives():
    """Of three layers less those of two; the last layer is never recomputed."""
    for layout, zero, again, wanted in COLLECTIVES:
        two, three = (run(f"count-{layout}-{zero}-{again}-{layers}", 2, layout=layout, zero=zero, recompute=again, layers=layers, steps=3,
                          batch=2 * int(layout[1]) if layout[0] == "d" else 2).collectives[1] for layers in (2, 3))
        assert three - two == wanted, f"{layout}, ZeRO {zero}, recompute {again}: a layer takes {three - two} collectives, not {wanted}"


def compositions(ranks):
    """Every way of writing ranks, a power of two, as d t c p."""
    return [{"d": d, "t": t, "c": c, "p": ranks // (d * t * c)} for d in (1, 2, 4, 8) for t in (1, 2, 4, 8) for c in (1, 2, 4, 8)
            if ranks % (d * t * c) == 0]


def matrix():
    """All 34 layouts of 2, 4 and 8 ranks against one rank, over 20 steps; ZeRO stages and recompute take turns."""
    tried = 0
    for ranks in RANKS:
        for counts in compositions(ranks):
            layout = "".join(f"{axis}{count}" for axis, count in counts.items())
            keys = {"layers": max(4, counts["p"]), "heads": 8, "steps": 20}
            one = run(f"matrix-one-{keys['layers']}", 1, **keys)
            other = run(f"matrix-{layout}", ranks, layout=layout, zero=1 + tried % 3, recompute=tried // 3 % 2, **keys)
            near(one, other)
            trained_alike(one, other)
            tried += 1
    assert tried == 34


# Layout, query heads (of 2 key-value heads), packed or not, samples, ZeRO stage, recompute.
TENSORS = (("t2", 4, 0, 13, 3, 0), ("t2", 4, 1, 5, 3, 1), ("t4", 4, 0, 13, 2, 1), ("t8", 8, 0, 5, 3, 0), ("d2t2", 4, 0, 13, 3, 1),
           ("d2t2", 4, 1, 5, 1, 0), ("t2c2", 4, 1, 5, 3, 0), ("t2p2", 4, 0, 13, 1, 1), ("t2c2p2", 4, 1, 5, 3, 1))


def tensor(tied):
    """Heads, ffn and an odd vocabulary cut over t ranks; each key-value head twice on t4, four times on t8."""
    for layout, heads, packed, batch, zero, again in TENSORS:
        keys = {"tied": tied, "heads": heads, "batch": batch,
                "micro": "max_tokens: 100" if packed else "micro_batch: 2", "steps": 4}
        one = run(f"tensor-one-{tied}-{heads}-{packed}-{batch}", 1, **keys)
        near(one, run(f"tensor-{tied}-{layout}-{batch}", ranks_of(layout), **keys, layout=layout, zero=zero, recompute=again))


def tensor_lanes():
    """Equal bits across d, p and recompute for the same t."""
    keys = {"lanes": 4, "policy": "fp32-master", "steps": 4, "zero": 1}
    narrow = run("tensor-lanes-t2", 2, layout="t2", **keys)
    for layout, again in (("t2", 1), ("d2t2", 0), ("t2p2", 0), ("d4t2", 0), ("d2t2p2", 1)):
        same(narrow, run(f"tensor-lanes-{layout}", ranks_of(layout), layout=layout, recompute=again, **keys))


def tensor_starts_alike():
    """Initial weights by global index: the same bits however they are cut, also where storing them draws random numbers. The
    first update has a learning rate of 0."""
    for policy in ("fp32-master", "bf16-sr"):
        one = run(f"start-{policy}-1", 1, policy=policy, tied="untied", stop_at=1)
        for layout in ("t2", "t4", "d2t2p2"):
            other = run(f"start-{policy}-{layout}", ranks_of(layout), layout=layout, policy=policy, tied="untied", stop_at=1)
            for name, _ in one.tensors:
                assert one.weights[name].tobytes() == other.weights[name].tobytes(), f"{policy}, {layout}: {name} starts otherwise"


def tensor_policies():
    """Narrow policies train as one rank does, to what their rounding allows."""
    for policy in ("fp32-master", "bf16-sr", "bf16-kahan", "fp32-split", "fp32-master+accumulate=bf16+reduce=bf16"):
        one = run(f"tensor-{policy}-1", 1, policy=policy, zero=1)
        other = run(f"tensor-{policy}-d2t2", 4, layout="d2t2", policy=policy, zero=1)
        for (loss, norm, *_), (loss2, norm2, *_) in zip(one.steps, other.steps):
            assert abs(loss - loss2) < 1e-2 * loss and abs(norm - norm2) < 3e-2 * norm, f"{policy}: {loss}, {norm} against {loss2}, {norm2}"
        assert all(sent == planned for sent, planned in other.sent), f"{policy}: {other.sent}"


def context_lanes():
    """Equal bits across d for the same c, with stop and resume on another d left to the plain case."""
    narrow = run("context-lanes-d1", 2, layout="c2", lanes=4, policy="fp32-master")
    same(narrow, run("context-lanes-d2", 4, layout="d2c2", lanes=4, policy="fp32-master"))
    same(narrow, run("context-recomputed", 2, layout="c2", lanes=4, policy="fp32-master", recompute=1))


# Layout, layers, micro-batches of one sequence or two in a batch of 13, samples, ZeRO stage, recompute.
PIPELINES = (("p2", 2, 2, 13, 1, 0), ("p2", 3, 1, 5, 3, 1), ("p2", 3, 1, 1, 2, 0), ("p4", 5, 1, 3, 1, 0), ("p4", 5, 1, 6, 3, 1),
             ("d2p2", 3, 2, 13, 1, 1), ("d2p2", 2, 2, 13, 3, 0), ("d2p2", 2, 1, 1, 2, 0), ("c2p2", 3, 2, 13, 2, 1),
             ("p8", 8, 1, 5, 1, 0), ("t2p2", 3, 1, 5, 1, 1), ("t2p4", 5, 1, 6, 1, 1))


def pipeline(tied):
    """Blocks over p stages, uneven layer counts among them; fewer micro-batches than stages, and more; ranks without any."""
    for layout, layers, micro, batch, zero, again in PIPELINES:
        name, keys = f"{tied}-{layers}-{micro}-{batch}", {"tied": tied, "layers": layers, "micro": f"micro_batch: {micro}", "batch": batch}
        one = run(f"pipeline-one-{name}", 1, **keys, steps=3)
        near(one, run(f"pipeline-{layout}-{name}", ranks_of(layout), **keys, layout=layout, zero=zero, recompute=again, steps=3))


def pipeline_lanes():
    """Equal bits across p and d together, for every stage of ZeRO; with packed batches whose last lanes are absent."""
    for tied, policy in (("tied", "fp32-master"), ("untied", "bf16-sr")):
        keys = {"lanes": 4, "tied": tied, "layers": 4, "micro": "max_tokens: 100", "batch": 7, "policy": policy, "steps": 4}
        one = run(f"stages-one-{tied}", 1, **keys)
        for layout, zero in (("p2", 1), ("p4", 2), ("d2p2", 1), ("d2p2", 3)):
            same(one, run(f"stages-{layout}-{zero}-{tied}", ranks_of(layout), **keys, layout=layout, zero=zero))


def zero_stages():
    """Stage 2 keeps weights, which changes no bit; stage 1 adds micro-batches before ranks. Under lanes all three agree."""
    one = run("zero-one", 1)
    for ranks in (2, 4):
        three = run(f"zero-3-{ranks}", ranks)
        same(three, run(f"zero-2-{ranks}", ranks, zero=2))
        near(one, run(f"zero-1-{ranks}", ranks, zero=1))
    lanes = run("zero-lanes", 1, lanes=8)
    for zero in (1, 2):
        same(lanes, run(f"zero-lanes-{zero}", 2, lanes=8, zero=zero))
    narrow = "fp32-master+accumulate=bf16+reduce=bf16"
    loss, *_ = run("zero-wide", 2, policy="fp32-master").steps[2]
    loss2, *_ = run("zero-narrow", 2, zero=1, policy=narrow).steps[2]
    assert abs(loss - loss2) < 1e-2 * loss, f"{loss} against {loss2}"


def guarded():
    needs_hooks()
    same(run("open", 2), run("guarded", 2, device="guarded"))
    same(run("open-1", 2, zero=1), run("guarded-1", 2, device="guarded", zero=1))
    same(run("open-2", 2, zero=2, policy="fp32-split"), run("guarded-2", 2, device="guarded", zero=2, policy="fp32-split"))
    same(run("open-p", 2, layout="p2", zero=1), run("guarded-p", 2, layout="p2", device="guarded", zero=1))
    same(run("open-t", 2, layout="t2", recompute=1), run("guarded-t", 2, layout="t2", device="guarded", recompute=1))


# Each bug, injected in builds with test hooks, and the case that must catch it.
INJECTED = {"rank-left-out": "d_agree_tied", "tied-use-dropped": "d_agree_tied", "wire-bf16": "d_agree_untied",
            "norm-counts-twice": "d_agree_tied", "leaves-misnumbered": "lanes_equal_bits_fp32_batch_above_L",
            "labels-shifted-after-the-cut": "c_agrees_tied", "local-positions": "c_agrees_tied",
            "chunks-in-order": "c_agrees_tied", "averaged-over-c": "c_agrees_tied",
            "tied-not-summed-over-p": "p_agrees_tied", "tied-counts-twice": "p_agrees_tied",
            "micro-batches-swapped": "p_agrees_tied",
            "q-norm-not-summed-over-t": "t_agrees_tied", "block-norm-not-summed-over-t": "t_agrees_tied",
            "k-proj-not-summed-over-t": "t_agrees_tied", "norm-counts-copies": "t_agrees_tied"}


def caught(bug, sound):
    """One rank without the bug against several with it, which without it agree: `sound` remembers whose that is known of."""
    tied = "tied" if INJECTED[bug] != "d_agree_untied" else "untied"
    lanes_, policy = (8, "fp32-master+compute=fp32") if "lanes" in INJECTED[bug] else (0, "fp32-master+compute=fp32")
    compare = same if lanes_ else near
    axis = INJECTED[bug][0] if INJECTED[bug][1] == "_" else "d"
    keys = {"lanes": lanes_, "tied": tied, "batch": 20 if lanes_ else 13, "policy": policy}
    if axis == "p":
        keys["micro"] = "micro_batch: 1"  # of the same length in memory, one as the other
    ranks = 4 if axis == "t" else 2  # t4: of two key-value heads, so that two ranks hold each
    case = f"{axis}-{tied}-{lanes_}"
    if case not in sound:
        one = run(f"one-{case}", 1, **keys)
        compare(one, run(f"sound-{case}", ranks, **keys, layout=f"{axis}{ranks}"))
        sound[case] = one
    one = sound[case]
    os.environ["TRAINERD_INJECT"] = bug
    try:
        compare(one, run(f"wrong-{bug}", ranks, **keys, layout=f"{axis}{ranks}"))
    except AssertionError:
        return
    finally:
        del os.environ["TRAINERD_INJECT"]
    raise AssertionError(f"the injected bug {bug} was not caught")


def not_finite():
    """A gradient that is not finite is found on the rank that has it, whatever stage it is on, and every rank says so."""
    needs_hooks()
    for layout, rank in (("d2", 0), ("p2", 1), ("d2p2", 2), ("t2p2", 2)):
        os.environ["TRAINERD_INJECT"] = "head-not-finite"
        try:
            run(f"not-finite-{layout}", ranks_of(layout), layout=layout, steps=20)
        except RuntimeError:
            pass
        finally:
            del os.environ["TRAINERD_INJECT"]
        with open(f"{FOLDER}/not-finite-{layout}/steps") as file:
            said = {line.strip() for line in file if line.startswith("skipped")}
        assert said == {f"skipped {rank} model.norm.weight"}, f"{layout}: {said}"


def injected():
    needs_hooks()
    sound = {}
    for bug in INJECTED:
        caught(bug, sound)


TESTS = {"all_layouts_agree": matrix,
         "collectives_of_a_layer": collectives,
         "d_agree_tied": lambda: plain("tied"),
         "d_agree_untied": lambda: plain("untied"),
         "lanes_equal_bits_fp32_batch_above_L": lambda: lanes("fp32", "micro_batch: 1", 20),
         "lanes_equal_bits_fp32_packed_short_batch": lambda: lanes("fp32", "max_tokens: 100", 5),
         "lanes_equal_bits_bf16": lambda: lanes("bf16", "max_tokens: 64", 30),
         "lanes_equal_bits_bf16_sr": stochastic_policy,
         "lanes_equal_bits_fp24_q8": quantized_policy,
         "lanes_equal_bits_fp32_split_whose_w_is_the_copy": lambda: weights_in_the_copy("fp32-split"),
         "lanes_equal_bits_bf16_kahan_whose_w_is_the_copy": lambda: weights_in_the_copy("bf16-kahan"),
         "split_is_fp32_in_fp32_compute": split_is_fp32,
         "lanes_stop_on_4_resume_on_1": lambda: stop_and_resume("d", {"ranks": 4}, {"ranks": 1}),
         "lanes_stop_and_resume_on_other_zero_and_layout": stop_and_resume_elsewhere,
         "zero_stages_agree": zero_stages,
         "c_agrees_tied": lambda: context("tied"),
         "c_agrees_untied": lambda: context("untied"),
         "c_lanes_equal_bits_across_d": context_lanes,
         "p_agrees_tied": lambda: pipeline("tied"),
         "p_agrees_untied": lambda: pipeline("untied"),
         "p_lanes_equal_bits": pipeline_lanes,
         "t_agrees_tied": lambda: tensor("tied"),
         "t_agrees_untied": lambda: tensor("untied"),
         "t_lanes_equal_bits_across_d_and_p": tensor_lanes,
         "t_starts_alike": tensor_starts_alike,
         "t_policies_train": tensor_policies,
         "recompute_equal_bits": recompute,
         "threads_equal_bits": threads,
         "reduce_bf16_rounds_the_wire": reduced_wire,
         "accumulate_bf16_trains": accumulate_bf16,
         "guarded_device_two_ranks": guarded,
         "gradient_not_finite_is_found": not_finite,
         "injected_bugs_are_caught": injected}


def main():
    failed = []
    subprocess.run([PROGRAM, "data", f"{FOLDER}/data"], check=True, timeout=60)
    for name, test in TESTS.items():
        if NAMES and not any(part in name for part in NAMES):
            continue
        outcome, reason = "      OK", ""
        try:
            test()
        except Skipped:
            outcome = " SKIPPED"
        except (AssertionError, RuntimeError, subprocess.TimeoutExpired, OSError) as error:
            outcome, reason = "  FAILED", str(error)
            failed.append(name)
        print(f"[ {outcome} ] {name}\n{reason}", end="" if not reason else "\n", flush=True)
    if failed:
        print(f"files are in {FOLDER}")
    else:
        shutil.rmtree(FOLDER)
    return len(failed) > 0


if __name__ == "__main__":
    sys.exit(main())
