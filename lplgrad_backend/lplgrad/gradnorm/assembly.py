"""Loops over numbers in memory, written in Python and made into machine code by LLVM.

What torch has no call for takes several calls, each of which reads and writes all there is, and most of such a batch's time
is memory's: sums and ways back (places.py), weight gradients of few channels (narrow.py), Winograd's tiles
(winograd_tiles.py). No compiler is to be expected where the backend runs, so llvmlite brings LLVM along. A routine takes a
twentieth to a fifth of a second to make, once in a process.

A routine's arrays are float32 and do not overlap where one of them is written, unless place by place; its sizes are whole
numbers. Features lie in memory as [N, H, W, C], so that neighbouring numbers are of neighbouring channels, and these are
computed side by side, `lanes` of them at a time.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from llvmlite import binding, ir
from torch import Tensor

WORD, SINGLE = ir.IntType(64), ir.FloatType()

Widths = tuple[int, ...]
"""Numbers of lanes, the largest first: as many channels at a time as fit, then fewer."""

LANES: Widths = (16, 8, 1)
"""Sixteen are two registers of AVX2, one of AVX-512, four of NEON."""

WORTH_THREADS = 2**20
"""Numbers from which starting threads takes less time than they save."""


@dataclass(frozen=True)
class Whole:
    """A whole number that is known when the routine runs."""

    code: ir.IRBuilder
    value: ir.Value

    def _of(self, other: Whole | int) -> ir.Value:
        return WORD(other) if isinstance(other, int) else other.value

    def __add__(self, other: Whole | int) -> Whole:
        return Whole(self.code, self.code.add(self.value, self._of(other)))

    def __sub__(self, other: Whole | int) -> Whole:
        return Whole(self.code, self.code.sub(self.value, self._of(other)))

    def __mul__(self, other: Whole | int) -> Whole:
        return Whole(self.code, self.code.mul(self.value, self._of(other)))

    def __lt__(self, other: Whole | int) -> ir.Value:
        return self.code.icmp_signed("<", self.value, self._of(other))

    def rounded_down(self, step: int) -> Whole:
        """To a multiple of a power of two."""
        return Whole(self.code, self.code.and_(self.value, WORD(-step)))

    def is_within(self, size: Whole) -> ir.Value:
        """Whether 0 <= it < size: as numbers without a sign, the negative ones are the largest."""
        return self.code.icmp_unsigned("<", self.value, size.value)

    def least(self, other: Whole) -> Whole:
        return Whole(self.code, self.code.select(self < other, self.value, other.value))


@dataclass(frozen=True)
class Numbers:
    """As many float32 as there are lanes; in arithmetic a plain number stands for as many equal ones."""

    code: ir.IRBuilder
    value: ir.Value

    def _of(self, other: Numbers | float) -> ir.Value:
        return other.value if isinstance(other, Numbers) else _constant(other, self.value.type)

    def __add__(self, other: Numbers | float) -> Numbers:
        return Numbers(self.code, self.code.fadd(self.value, self._of(other), flags=("contract",)))

    def __mul__(self, other: Numbers | float) -> Numbers:
        return Numbers(self.code, self.code.fmul(self.value, self._of(other), flags=("contract",)))

    def where_above(self, bound: float, value: Numbers | float, otherwise: Numbers | float) -> Numbers:
        """One value where this number is larger than the bound, the other where it is not, or no number."""
        above = self.code.fcmp_ordered(">", self.value, self._of(bound))
        return Numbers(self.code, self.code.select(above, self._of(value), self._of(otherwise)))


class Total:
    """A sum that grows, in a register."""

    def __init__(self, code: ir.IRBuilder, place: ir.Value, kind: ir.Type) -> None:
        self._code, self._place = code, place
        code.store(_constant(0.0, kind), place)

    def add(self, numbers: Numbers) -> None:
        self._code.store((self.value + numbers).value, self._place)

    @property
    def value(self) -> Numbers:
        return Numbers(self._code, self._code.load(self._place))


class Assembly:
    """A routine while it is written: void name(float* arrays..., int64 first, int64 last, int64 sizes...).

    Attributes:
        first, last: the images it is about, the last not among them.
        counts: how many arrays and sizes it is given.
    """

    def __init__(self, name: str, arrays: int, sizes: int) -> None:
        self.module = ir.Module(name)
        self.counts = arrays, sizes
        self._besides: dict[tuple[int, bool], ir.Value] = {}
        kinds = [SINGLE.as_pointer()] * arrays + [WORD] * (2 + sizes)
        self._function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), kinds), name)
        self._entry, start = self._function.append_basic_block(), self._function.append_basic_block()
        self.code = ir.IRBuilder(self._entry)
        self.code.branch(start)
        self.code.position_at_end(start)
        self.arrays: Sequence[ir.Value] = self._function.args[:arrays]
        self.first, self.last, *self.sizes = (Whole(self.code, one) for one in self._function.args[arrays:])

    @contextmanager
    def loop(self, start: Whole | int, stop: Whole | int, step: int = 1) -> Iterator[Whole]:
        """What is written inside is done for start, start + step, ... below stop."""
        code, place = self.code, self._room(WORD)
        code.store(WORD(start) if isinstance(start, int) else start.value, place)
        head, body, end = (self._function.append_basic_block() for _ in range(3))
        code.branch(head)
        code.position_at_end(head)
        index = Whole(code, code.load(place))
        code.cbranch(index < stop, body, end)
        code.position_at_end(body)
        yield index
        code.store((index + step).value, place)
        code.branch(head)
        code.position_at_end(end)

    def channels(self, count: Whole, widths: Widths = LANES) -> Iterator[tuple[int, Whole]]:
        """What is written inside is done for all channels: how many at a time, and the first of them.

        Args:
            widths: powers of two, of which the last divides the number of channels.
        """
        start: Whole | int = 0
        for lanes in widths:
            stop = count.rounded_down(lanes)
            with self.loop(start, stop, lanes) as channel:
                yield lanes, channel
            start = stop

    def total(self, lanes: int) -> Total:
        return Total(self.code, self._room(_kind(lanes)), _kind(lanes))

    def scratch(self, count: int) -> ir.Value:
        """An array of the routine's own."""
        with self.code.goto_block(self._entry):
            return self.code.alloca(SINGLE, WORD(count))

    def load(self, array: ir.Value, place: Whole | int, lanes: int, where: ir.Value | None = None) -> Numbers:
        """What is there; zeros where a condition does not hold."""
        at = self._at(array, place, lanes)
        if where is not None:
            at = self.code.select(where, at, self._beside(lanes, zero=True))
        return Numbers(self.code, self.code.load(at, align=4))

    def spread(self, array: ir.Value, place: Whole, lanes: int) -> Numbers:
        """One number for all lanes."""
        number = self.load(array, place, 1).value
        if lanes == 1:
            return Numbers(self.code, number)
        nothing = ir.Constant(_kind(lanes), ir.Undefined)
        one = self.code.insert_element(nothing, number, ir.IntType(32)(0))
        firsts = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        return Numbers(self.code, self.code.shuffle_vector(one, nothing, firsts))

    def store(
        self, numbers: Numbers, array: ir.Value, place: Whole | int, lanes: int, where: ir.Value | None = None
    ) -> None:
        """Nowhere, where a condition does not hold."""
        at = self._at(array, place, lanes)
        if where is not None:
            at = self.code.select(where, at, self._beside(lanes, zero=False))
        self.code.store(numbers.value, at, align=4)

    def add(self, numbers: Numbers, array: ir.Value, place: Whole, lanes: int) -> None:
        """To what is there."""
        self.store(self.load(array, place, lanes) + numbers, array, place, lanes)

    def _at(self, array: ir.Value, place: Whole | int, lanes: int) -> ir.Value:
        number = WORD(place) if isinstance(place, int) else place.value
        return self.code.bitcast(self.code.gep(array, [number]), _kind(lanes).as_pointer())

    def _beside(self, lanes: int, zero: bool) -> ir.Value:
        """Memory for what lies beside the image: of zeros to read, or to be written and forgotten."""
        if (lanes, zero) not in self._besides:
            with self.code.goto_block(self._entry):
                place = self._besides[lanes, zero] = self.code.alloca(_kind(lanes))
                self.code.store(_constant(0.0, _kind(lanes)), place)
        return self._besides[lanes, zero]

    def _room(self, kind: ir.Type) -> ir.Value:
        with self.code.goto_block(self._entry):
            return self.code.alloca(kind)


class Routine:
    """Machine code. Several threads may run it at once."""

    def __init__(self, written: Assembly) -> None:
        arrays, sizes = written.counts
        written.code.ret_void()
        self._engine = _made(written.module)  # the code lives as long as this does
        address = self._engine.get_function_address(written.module.name)
        kinds = [ctypes.c_void_p] * arrays + [ctypes.c_int64] * (2 + sizes)
        self._run: Callable[..., None] = ctypes.CFUNCTYPE(None, *kinds)(address)

    def __call__(self, images: int, arrays: Sequence[Tensor], sizes: Sequence[int]) -> None:
        """Of all images, in as many threads as torch has."""
        places = [one.data_ptr() for one in arrays]
        threads = min(images, torch.get_num_threads())
        if threads == 1 or sum(one.numel() for one in arrays) < WORTH_THREADS:
            self._run(*places, 0, images, *sizes)
            return
        some = math.ceil(images / threads)
        with ThreadPoolExecutor(threads) as pool:
            parts = [(start, min(start + some, images)) for start in range(0, images, some)]
            for part in [pool.submit(self._run, *places, *part, *sizes) for part in parts]:
                part.result()


def widths_for(channels: int, most: int = LANES[0]) -> Widths:
    """Of LANES, those that this many channels may want; code for fewer takes less time to make."""
    return tuple(lanes for lanes in LANES if lanes <= most and (lanes > 1 or channels % LANES[1]))


def readable(*features: Tensor) -> bool:
    """Whether routines can be about these [N, C, H, W]."""
    return all(
        one.device.type == "cpu" and one.dtype == torch.float32 and one.is_contiguous(memory_format=torch.channels_last)
        for one in features
    )


def _made(module: ir.Module) -> binding.ExecutionEngine:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    features = binding.get_host_cpu_features().flatten()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=features, opt=2
    )
    module.triple = machine.triple
    parsed = binding.parse_assembly(str(module))
    # what is side by side is written so, and LLVM would search for more of it twice as long as it takes for the rest
    options = binding.create_pipeline_tuning_options(speed_level=1)
    options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False
    passes = binding.create_pass_builder(machine, options)
    passes.getModulePassManager().run(parsed, passes)
    engine = binding.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    return engine


def _kind(lanes: int) -> ir.Type:
    return SINGLE if lanes == 1 else ir.VectorType(SINGLE, lanes)


def _constant(number: float, kind: ir.Type) -> ir.Constant:
    if kind == SINGLE:
        return ir.Constant(SINGLE, number)
    return ir.Constant(kind, [ir.Constant(SINGLE, number)] * kind.count)
