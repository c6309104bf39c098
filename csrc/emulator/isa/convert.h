// What the conversions of scalars (convert.cpp) and of packed pairs (convert_packed.cpp) share.
#pragma once

#include <memory>

#include "emulator/isa/table.h"
#include "emulator/numerics/convert.h"

namespace pykernels::emulator {

/// The modifiers of a cvt, and what its registers look like.
struct Conversion : SideData {
  Type to = Type::kNone;
  Type from = Type::kNone;
  bool has_rounding = false;
  bool to_integral = false;  // .rni and the like
  Rounding rounding = Rounding::kRn;
  bool ftz = false;
  bool saturate = false;
  bool satfinite = false;
  bool relu = false;
  int to_bits = 0;       // of the destination register
  bool from_64 = false;  // lanes are uint64_t
  bool to_64 = false;
};

/// Of a floating-point type of at most 32 bits, or of the elements of a pair.
FloatFormat format_of(Type type);

/// Builds the forms whose result or source is a pair, and .tf32; false for any other.
bool build_packed_conversion(Builder& builder, std::unique_ptr<Conversion>& conversion);

/// cvt.pack
void add_pack_forms(Table& table);

}  // namespace pykernels::emulator
