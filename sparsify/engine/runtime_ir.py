"""The part of the runtime that threads run: claim tiles, run them, meet at the end of each stage.

A job is an int64 array, each counter on a cache line of its own:

    job[0]           generation of the current run
    job[1..6]        stages, threads, addresses of the stage records, the counters and the clock's readings,
                     pauses before a waiting thread yields its core
    record[s]        function, buffers, constants, tiles, number of the first tile
    counter[s][0]    tiles done;  counter[s][1 + t]  next tile of thread t's share, and the share's end

Counters carry the generation in their upper half, so that a thread that comes late from an earlier run
notices and leaves instead of taking tiles of a run that it does not belong to. A thread that never comes
harms nobody: the others take its share, but only after some microseconds, because what it reads and writes lies in its
core's caches, now and in the stages to come. Only a thread that holds a tile is waited for.
"""

from __future__ import annotations

from llvmlite import ir

from sparsify.engine.ir import I64, POINTER, STAGE_TYPE, Body, Module

LINE = 8  # int64 in a cache line
JOB = 8  # int64 in a job's head
RECORD = 5
_PATIENCE = 64  # part of the pauses before a waiting thread yields, after which it takes another one's tiles
POOL_TICKET, POOL_JOB, POOL_ACTIVE, POOL_PARKED = 0, LINE, 2 * LINE, 3 * LINE


def emit(module: Module) -> None:
    """Add `sparsify_start`, `sparsify_take_part` and `sparsify_serve`."""
    _relax(module)
    _take_part(module)
    _start(module)
    _serve(module)


def _atomic(body: Body, base: ir.Value, index: ir.Value | int) -> ir.Value:
    return body.builder.load_atomic(body.at(base, index, I64), "acquire", 8, typ=I64)


def _publish(body: Body, value: ir.Value, base: ir.Value, index: ir.Value | int) -> None:
    body.builder.atomic_rmw("xchg", body.at(base, index, I64), value, "release")


def _relax(module: Module) -> None:
    """void sparsify_relax(turn, spins): a pause at first, later the core is offered to others."""
    body = Body(module, "sparsify_relax", ir.FunctionType(ir.VoidType(), [I64, I64]))
    sched_yield = ir.Function(module.llvm, ir.FunctionType(ir.IntType(32), []), "sched_yield")
    builder = body.builder
    with builder.if_else(builder.icmp_signed("<", *body.arguments)) as (brief, long):
        with brief:
            if module.target.triple.startswith(("x86_64", "i686")):
                pause = ir.Function(module.llvm, ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse2.pause")
                builder.call(pause, [])
        with long:
            builder.call(sched_yield, [])
    body.done()


def _clock(body: Body) -> ir.Value:
    if not body.module.target.triple.startswith("x86_64"):
        return body.const(0)
    name = "llvm.readcyclecounter"
    known = body.module.llvm.globals.get(name)
    return body.builder.call(known or ir.Function(body.module.llvm, ir.FunctionType(I64, []), name), [])


def _take_part(module: Module) -> None:
    """void sparsify_take_part(job, thread): run the job's stages together with whoever else is there."""
    body = Body(module, "sparsify_take_part", ir.FunctionType(ir.VoidType(), [POINTER, I64]))
    builder = body.builder
    job, thread = body.arguments
    generation = _atomic(body, job, 0)
    _, stages, threads = body.numbers(job, 3)
    records, counters, clock = (body.load(job, i, POINTER, align=8) for i in (3, 4, 5))
    spins = body.load(job, 6, I64, align=8)
    patience = builder.udiv(spins, body.const(_PATIENCE))
    leave = builder.append_basic_block("leave")
    row = builder.mul(builder.add(threads, body.const(1)), body.const(LINE))
    with body.loop(0, stages) as stage:
        record = body.at(records, builder.mul(stage.index, body.const(RECORD)), I64)
        done = body.at(counters, builder.mul(stage.index, row), I64)
        tiles = body.load(record, 3, I64, align=8)
        _drain(body, record, done, thread, generation, leave)
        met = _await(body, done, tiles, patience, spins, generation, leave)
        with builder.if_then(builder.not_(met)):
            with body.loop(1, threads) as other:
                victim = builder.urem(builder.add(thread, other.index), threads)
                _drain(body, record, done, victim, generation, leave)
            _await(body, done, tiles, None, spins, generation, leave)
        with builder.if_then(builder.icmp_signed("==", thread, body.const(0))):
            body.store(_clock(body), clock, builder.add(stage.index, body.const(1)), align=8)
    builder.branch(leave)
    builder.position_at_end(leave)
    body.done()


def _drain(
    body: Body, record: ir.Value, done: ir.Value, victim: ir.Value, generation: ir.Value, leave: ir.Block
) -> None:
    """Run the tiles that are left of one thread's share, and say at the end how many: another core's counter is
    far away."""
    builder = body.builder
    before = builder.block
    function, buffers, constants = (body.load(record, i, POINTER, align=8) for i in range(3))
    place = body.at(done, builder.mul(builder.add(victim, body.const(1)), body.const(LINE)), I64)
    share = body.load(place, 1, I64, align=8)
    attempt, taken, over = (builder.append_basic_block(n) for n in ("attempt", "taken", "over"))
    current = builder.append_basic_block("current")
    claim = builder.append_basic_block("claim")
    builder.branch(attempt)
    builder.position_at_end(attempt)
    ran = builder.phi(I64)
    ran.add_incoming(body.const(0), before)
    seen = _atomic(body, place, 0)
    same = builder.icmp_unsigned("==", builder.lshr(seen, body.const(32)), generation)
    builder.cbranch(same, current, leave)
    builder.position_at_end(current)
    tile = builder.and_(seen, body.const(0xFFFFFFFF))
    builder.cbranch(builder.icmp_unsigned("<", tile, share), claim, over)
    builder.position_at_end(claim)
    won = builder.cmpxchg(place, seen, builder.add(seen, body.const(1)), "acq_rel", "acquire")
    builder.cbranch(builder.extract_value(won, 1), taken, attempt)
    ran.add_incoming(ran, builder.block)
    builder.position_at_end(taken)
    body.call(function, STAGE_TYPE, [buffers, constants, tile])
    ran.add_incoming(builder.add(ran, body.const(1)), builder.block)
    builder.branch(attempt)
    builder.position_at_end(over)
    with builder.if_then(builder.icmp_signed(">", ran, body.const(0))):
        builder.atomic_rmw("add", done, ran, "acq_rel")


def _await(
    body: Body, done: ir.Value, tiles: ir.Value, patience: ir.Value | None, spins: ir.Value, generation: ir.Value,
    leave: ir.Block,
) -> ir.Value:  # fmt: skip
    """Wait until every tile of the stage is done, or for so many turns; returns whether they are."""
    builder = body.builder
    before = builder.block
    look, current, again, over = (builder.append_basic_block(n) for n in ("look", "waiting", "again", "met"))
    builder.branch(look)
    builder.position_at_end(look)
    turn = builder.phi(I64)
    turn.add_incoming(body.const(0), before)
    seen = _atomic(body, done, 0)
    same = builder.icmp_unsigned("==", builder.lshr(seen, body.const(32)), generation)
    builder.cbranch(same, current, leave)
    builder.position_at_end(current)
    met = builder.icmp_unsigned("==", builder.and_(seen, body.const(0xFFFFFFFF)), tiles)
    ends = met if patience is None else builder.or_(met, builder.icmp_signed(">=", turn, patience))
    builder.cbranch(ends, over, again)
    builder.position_at_end(again)
    builder.call(body.module.llvm.globals["sparsify_relax"], [turn, spins])
    turn.add_incoming(builder.add(turn, body.const(1)), builder.block)
    builder.branch(look)
    builder.position_at_end(over)
    return met


def _start(module: Module) -> None:
    """int64 sparsify_start(pool, job, workers): begin a run.

    Counts the job's generation up, resets its counters and shows the job to the pool. Returns 0 when the
    run is over; where workers are parked it returns at once with a bit for each, and the caller wakes them
    and takes part itself.
    """
    body = Body(module, "sparsify_start", ir.FunctionType(I64, [POINTER, POINTER, I64]))
    builder = body.builder
    pool, job, workers = body.arguments
    _, stages, threads = body.numbers(job, 3)
    records, counters, clock = (body.load(job, i, POINTER, align=8) for i in (3, 4, 5))
    generation = builder.and_(builder.add(_atomic(body, job, 0), body.const(1)), body.const(0x7FFFFFFF))
    tag = builder.shl(generation, body.const(32))
    row = builder.mul(builder.add(threads, body.const(1)), body.const(LINE))
    with body.loop(0, stages) as stage:
        record = body.at(records, builder.mul(stage.index, body.const(RECORD)), I64)
        tiles, start = (body.load(record, i, I64, align=8) for i in (3, 4))
        done = body.at(counters, builder.mul(stage.index, row), I64)
        _publish(body, tag, done, 0)
        with body.loop(0, threads) as thread:
            first = builder.add(start, builder.udiv(builder.mul(tiles, thread.index), threads))
            place = builder.mul(builder.add(thread.index, body.const(1)), body.const(LINE))
            _publish(body, builder.or_(tag, first), done, place)
    body.store(_clock(body), clock, 0, align=8)
    _publish(body, generation, job, 0)
    _publish(body, builder.ptrtoint(job, I64), pool, POOL_JOB)
    builder.atomic_rmw("add", body.at(pool, POOL_TICKET, I64), body.const(1), "seq_cst")
    with body.loop(0, workers, carried=[body.const(0)]) as worker:
        flag = body.at(pool, builder.add(builder.mul(worker.index, body.const(LINE)), body.const(POOL_PARKED)), I64)
        was = builder.atomic_rmw("xchg", flag, body.const(0), "seq_cst")
        worker.following = [builder.or_(worker.state[0], builder.shl(was, worker.index))]
    parked = worker.state[0]
    with builder.if_then(builder.icmp_signed("==", parked, body.const(0))):
        builder.call(module.llvm.globals["sparsify_take_part"], [job, body.const(0)])
    builder.ret(parked)


def _serve(module: Module) -> None:
    """int64 sparsify_serve(pool, thread, seen, patience): what a worker does until it is parked.

    `seen` is the last ticket that it served; returns the newest when `patience` turns brought no other.
    """
    body = Body(module, "sparsify_serve", ir.FunctionType(I64, [POINTER, I64, I64, I64]))
    builder = body.builder
    pool, thread, seen_before, patience = body.arguments
    park = body.at(pool, builder.add(builder.mul(builder.sub(thread, body.const(1)), body.const(LINE)),
                                     body.const(POOL_PARKED)), I64)  # fmt: skip
    look, serve, wait, doze, leave = (builder.append_basic_block(n) for n in ("look", "serve", "wait", "doze", "leave"))
    rest, back = builder.append_basic_block("rest"), builder.append_basic_block("back")
    entry = builder.block
    builder.branch(look)
    builder.position_at_end(look)
    seen, turn = builder.phi(I64), builder.phi(I64)
    seen.add_incoming(seen_before, entry)
    turn.add_incoming(body.const(0), entry)
    ticket = _atomic(body, pool, POOL_TICKET)
    builder.cbranch(builder.icmp_signed("!=", ticket, seen), serve, wait)

    builder.position_at_end(serve)
    active = body.at(pool, POOL_ACTIVE, I64)
    builder.atomic_rmw("add", active, body.const(1), "seq_cst")
    job = _atomic(body, pool, POOL_JOB)
    with builder.if_then(builder.icmp_signed("!=", job, body.const(0))):
        builder.call(module.llvm.globals["sparsify_take_part"], [builder.inttoptr(job, POINTER), thread])
    builder.atomic_rmw("sub", active, body.const(1), "seq_cst")
    seen.add_incoming(ticket, builder.block)
    turn.add_incoming(body.const(0), builder.block)
    builder.branch(look)

    builder.position_at_end(wait)
    builder.cbranch(builder.icmp_signed("<", turn, patience), doze, rest)
    builder.position_at_end(doze)
    builder.call(module.llvm.globals["sparsify_relax"], [turn, patience])
    seen.add_incoming(seen, builder.block)
    turn.add_incoming(builder.add(turn, body.const(1)), builder.block)
    builder.branch(look)

    # Parked first, then one more look: a ticket that came in between is either seen here or its
    # issuer sees the flag and wakes this worker.
    builder.position_at_end(rest)
    builder.atomic_rmw("xchg", park, body.const(1), "seq_cst")
    late = builder.icmp_signed("!=", _atomic(body, pool, POOL_TICKET), seen)
    builder.cbranch(late, back, leave)
    builder.position_at_end(back)
    was = builder.atomic_rmw("xchg", park, body.const(0), "seq_cst")
    seen.add_incoming(seen, builder.block)
    turn.add_incoming(body.const(0), builder.block)
    # Where the issuer took the flag away already it also released the semaphore: leave and consume it.
    builder.cbranch(builder.icmp_signed("==", was, body.const(1)), look, leave)
    builder.position_at_end(leave)
    builder.ret(seen)
