// Everything that is compiled once for each instruction set. The file that includes this has included its lanes;
// all of it has internal linkage, so that no linker can hand one set's code to a processor that lacks it.
#pragma once
#include "activations.h"
#include "attention_tile.h"
#include "bf16_tile.h"
#include "int4_tile.h"
#include "isa.h"
#include "limits.h"
#include "row_math.h"

namespace {

constexpr moonshard::Isa make_isa(const char* name) {
    return {name,      put_row,   panel_tile, silu_mul, add_scaled, put_pairs,
            bf16_tile, put_result, attend,     rms_norm, rotate,     sigmoid,   scale, read_all,   int8_peak, bf16_peak};
}

}  // namespace
