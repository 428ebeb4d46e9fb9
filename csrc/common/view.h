// Tensors as the kernels see them: an address, an element type, sizes and strides in elements. No torch headers.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace scorefusion {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

constexpr int kMaxDims = 6;

// A tensor, or with null data none.
struct View {
    void* data = nullptr;
    DType dtype = DType::kFloat32;
    int dims = 0;
    std::array<int64_t, kMaxDims> size{};
    std::array<int64_t, kMaxDims> stride{};

    explicit operator bool() const { return data != nullptr; }
    int64_t element_size() const { return dtype == DType::kFloat32 ? 4 : 2; }

    // Where element (indices...) lies, in elements.
    template <typename... Index>
    SF_INLINE int64_t at(Index... index) const {
        int64_t offset = 0;
        int axis = 0;
        ((offset += index * stride[axis++]), ...);
        return offset;
    }
};

struct BFloat16 {
    uint16_t bits;
};

struct Float16 {
    uint16_t bits;
};

// Widening is exact; narrowing rounds to the nearest, ties to even, and keeps NaN and infinity.
SF_INLINE float to_float(float value) { return value; }

SF_INLINE float to_float(BFloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}

SF_INLINE float to_float(Float16 value) {
    // The exponent is moved by a multiplication, which also makes subnormals right; infinity and NaN apart.
    const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7FFFu) << 13;
    float out;
    std::memcpy(&out, &magnitude, sizeof out);
    out *= 0x1p112f;
    uint32_t bits;
    std::memcpy(&bits, &out, sizeof bits);
    bits |= (value.bits & 0x7C00u) == 0x7C00u ? 0x7F800000u : 0u;
    bits |= static_cast<uint32_t>(value.bits & 0x8000u) << 16;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}

template <typename T>
SF_INLINE T from_float(float value);

template <>
SF_INLINE float from_float<float>(float value) {
    return value;
}

template <>
SF_INLINE BFloat16 from_float<BFloat16>(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
    return {static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u : rounded)};
}

template <>
SF_INLINE Float16 from_float<Float16>(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7FFFFFFFu;
    // Subnormal halves: adding 0.5 leaves the rounded mantissa in the low bits.
    float shifted;
    std::memcpy(&shifted, &magnitude, sizeof shifted);
    shifted += 0.5f;
    uint32_t small;
    std::memcpy(&small, &shifted, sizeof small);
    small -= 0x3F000000u;
    const uint32_t normal = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
    const uint32_t finite = magnitude < 0x38800000u ? small : normal;
    const uint32_t large = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
    return {static_cast<uint16_t>(sign | (magnitude >= 0x477FF000u ? large : finite))};
}

// [N, C, H, W] as [N, C, 1, H, W].
inline View as_volume(View view) {
    if (view.dims != 4) return view;
    for (int axis = 4; axis > 2; --axis) {
        view.size[axis] = view.size[axis - 1];
        view.stride[axis] = view.stride[axis - 1];
    }
    view.size[2] = 1;
    view.stride[2] = 0;
    view.dims = 5;
    return view;
}

// Calls body with a null pointer of the element type: dispatch(dtype, [&](auto* as) { using T = ...; }).
template <typename Body>
SF_INLINE void dispatch(DType dtype, const Body& body) {
    switch (dtype) {
        case DType::kBFloat16: body(static_cast<BFloat16*>(nullptr)); return;
        case DType::kFloat16: body(static_cast<Float16*>(nullptr)); return;
        default: body(static_cast<float*>(nullptr)); return;
    }
}

}  // namespace scorefusion
