// Cutting 2.5D slices out of volumes: planes of several sources interleaved into channels-last pixels.
//
// A block is a run of pixels through all slices of the slab. Its sources become rows of floats, contiguous along
// the pixels, one a slice: where the volume is laid out so, its own memory; otherwise a copy in the first-level
// cache, turned around where the slices are what runs contiguously (sagittal), so that whole cache lines are used.
// Rows are then interleaved four channels by four pixels.
#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "bind.h"
#include "pages.h"
#include "parallel.h"

namespace scorefusion {
namespace {

constexpr int kSlices = 16;   // slices whose rows are held at once: a cache line of floats
constexpr int kPixels = 256;  // pixels of a block
constexpr int kGroup = 4;     // the interleaving's unit, and the alignment of a block's channels

struct Source {  // one channel of a volume, as stacks of slices
    const void* data;
    DType dtype;
    int64_t item, slice, row, pixel;  // strides
    int halo;                         // neighbours needed on either side of a slice
};

struct Pick {  // where a channel of the result comes from
    int source, offset;
};

struct Slab {
    View out;  // [B·n, C, h, w], channels last
    std::vector<Source> sources;
    std::vector<Pick> picks;
    int64_t start, stop, slices, height, width;  // slices: of the whole volume
};

template <typename E>
struct Rows {  // of one source, for slices from `first` on
    const E* data;
    int64_t first, stride;
};

// Turns four rows of kLanes<E> elements around: out[i * to + c] = in[c][at + i], rows i in order.
template <typename E>
constexpr int kLanes = 16 / static_cast<int>(sizeof(E));

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SF_HAS_SHUFFLE
#endif
#endif

#if defined(SF_HAS_SHUFFLE)
typedef uint16_t Words __attribute__((vector_size(16)));
typedef uint32_t Pairs __attribute__((vector_size(16)));
typedef uint64_t Quads __attribute__((vector_size(16)));

// Elements of a and b by turns, from their low or their high halves.
SF_INLINE Words low(Words a, Words b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
SF_INLINE Words high(Words a, Words b) { return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
SF_INLINE Pairs low(Pairs a, Pairs b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
SF_INLINE Pairs high(Pairs a, Pairs b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
SF_INLINE Quads low(Quads a, Quads b) { return __builtin_shufflevector(a, b, 0, 2); }
SF_INLINE Quads high(Quads a, Quads b) { return __builtin_shufflevector(a, b, 1, 3); }

template <typename Vector>
SF_INLINE Vector read(const void* from) {
    Vector out;
    std::memcpy(&out, from, sizeof out);
    return out;
}

SF_INLINE void turn(const uint32_t* const* in, int64_t at, uint32_t* out, int64_t to) {
    const auto a = read<Pairs>(in[0] + at), b = read<Pairs>(in[1] + at);
    const auto c = read<Pairs>(in[2] + at), d = read<Pairs>(in[3] + at);
    const Quads ab[] = {(Quads)low(a, b), (Quads)high(a, b)}, cd[] = {(Quads)low(c, d), (Quads)high(c, d)};
    const Quads done[] = {low(ab[0], cd[0]), high(ab[0], cd[0]), low(ab[1], cd[1]), high(ab[1], cd[1])};
    for (int i = 0; i < 4; ++i) std::memcpy(out + i * to, &done[i], sizeof done[i]);
}

SF_INLINE void turn(const uint16_t* const* in, int64_t at, uint16_t* out, int64_t to) {
    const auto a = read<Words>(in[0] + at), b = read<Words>(in[1] + at);
    const auto c = read<Words>(in[2] + at), d = read<Words>(in[3] + at);
    const Pairs ab[] = {(Pairs)low(a, b), (Pairs)high(a, b)}, cd[] = {(Pairs)low(c, d), (Pairs)high(c, d)};
    const Quads done[] = {(Quads)low(ab[0], cd[0]), (Quads)high(ab[0], cd[0]), (Quads)low(ab[1], cd[1]),
                          (Quads)high(ab[1], cd[1])};
    for (int i = 0; i < 8; ++i) {
        const uint64_t four = done[i / 2][i % 2];
        std::memcpy(out + i * to, &four, sizeof four);
    }
}
#else
template <typename E>
SF_INLINE void turn(const E* const* in, int64_t at, E* out, int64_t to) {
    for (int i = 0; i < kLanes<E>; ++i) {
        for (int c = 0; c < kGroup; ++c) out[i * to + c] = in[c][at + i];
    }
}
#endif

// Interleaves `pixels` of `channels` rows; `in` is padded to whole groups by repeating a row. A group writes up to
// three elements too many, into the next pixel, which is written after it; the last pixels go through `spare`.
template <int kGroups, typename E>
SF_INLINE void interleave(const E* const* in, int channels, int pixels, E* out, E* spare) {
    constexpr int lanes = kLanes<E>;
    const int groups = kGroups > 0 ? kGroups : (channels + kGroup - 1) / kGroup;
    const auto some = [&](int at, E* to) {
        for (int g = groups - 1; g >= 0; --g) turn(in + g * kGroup, at, to + g * kGroup, channels);
    };
    int p = 0;
    for (; (p + lanes - 1) * channels + groups * kGroup <= pixels * channels; p += lanes) {
        some(p, out + p * channels);
    }
    if (p < pixels && pixels >= lanes) {
        some(pixels - lanes, spare);
        const int rest = pixels - p;
        std::memcpy(out + p * channels, spare + (lanes - rest) * channels, sizeof(E) * rest * channels);
        return;
    }
    for (; p < pixels; ++p) {
        for (int c = 0; c < channels; ++c) out[p * channels + c] = in[c][p];
    }
}

template <typename E>
SF_INLINE void interleave_any(const E* const* in, int channels, int pixels, E* out, E* spare) {
    switch ((channels + kGroup - 1) / kGroup) {
        case 1: interleave<1>(in, channels, pixels, out, spare); return;
        case 2: interleave<2>(in, channels, pixels, out, spare); return;
        case 3: interleave<3>(in, channels, pixels, out, spare); return;
        default: interleave<0>(in, channels, pixels, out, spare);
    }
}

SF_VECTOR_CLONES
void interleave(const uint32_t* const* in, int channels, int pixels, uint32_t* out, uint32_t* spare) {
    interleave_any(in, channels, pixels, out, spare);
}

SF_VECTOR_CLONES
void interleave(const uint16_t* const* in, int channels, int pixels, uint16_t* out, uint16_t* spare) {
    interleave_any(in, channels, pixels, out, spare);
}

// Copies `slices` x `pixels` elements, strides as given, into rows of kPixels, one a slice.
template <typename E>
SF_INLINE void line_up_as(const E* from, int64_t slice, int64_t pixel, int slices, int pixels, E* out) {
    constexpr int lanes = kLanes<E>;
    int p = 0;
    if (slice == 1 && slices >= lanes) {
        for (; p + kGroup <= pixels; p += kGroup) {
            const E* lines[kGroup];
            for (int i = 0; i < kGroup; ++i) lines[i] = from + (p + i) * pixel;
            for (int s = 0; s < slices; s += lanes) {
                const int at = std::min(s, slices - lanes);
                turn(lines, at, out + at * kPixels + p, kPixels);
            }
        }
    }
    for (int s = 0; s < slices; ++s) {
        for (int i = p; i < pixels; ++i) out[s * kPixels + i] = from[s * slice + i * pixel];
    }
}

SF_VECTOR_CLONES
void line_up(const uint32_t* from, int64_t slice, int64_t pixel, int slices, int pixels, uint32_t* out) {
    line_up_as(from, slice, pixel, slices, pixels, out);
}

SF_VECTOR_CLONES
void line_up(const uint16_t* from, int64_t slice, int64_t pixel, int slices, int pixels, uint16_t* out) {
    line_up_as(from, slice, pixel, slices, pixels, out);
}

template <typename From, typename To>
SF_INLINE void convert_as(const void* in, int count, void* out) {
    const From* __restrict from = static_cast<const From*>(in);
    To* __restrict to = static_cast<To*>(out);
    for (int i = 0; i < count; ++i) to[i] = from_float<To>(to_float(from[i]));
}

SF_VECTOR_CLONES
void convert(DType from, const void* in, int count, DType to, void* out) {
    if (from == DType::kFloat32 && to == DType::kBFloat16) convert_as<float, BFloat16>(in, count, out);
    if (from == DType::kFloat32 && to == DType::kFloat16) convert_as<float, Float16>(in, count, out);
    if (from == DType::kBFloat16 && to == DType::kFloat32) convert_as<BFloat16, float>(in, count, out);
    if (from == DType::kBFloat16 && to == DType::kFloat16) convert_as<BFloat16, Float16>(in, count, out);
    if (from == DType::kFloat16 && to == DType::kFloat32) convert_as<Float16, float>(in, count, out);
    if (from == DType::kFloat16 && to == DType::kBFloat16) convert_as<Float16, BFloat16>(in, count, out);
}

// All slices of the slab, for the pixels of one block; E is a result's element as bits.
template <typename E>
struct Worker {
    const Slab& slab;
    int channels, held;           // held: slices that a source's rows have room for
    std::vector<E> room, spare;   // the sources' rows where they are not used in place; the last pixels of a row
    std::vector<uint32_t> lined;  // rows before their conversion
    std::vector<Rows<E>> rows;
    std::vector<const E*> in;

    explicit Worker(const Slab& slab)
        : slab(slab), channels(static_cast<int>(slab.picks.size())), rows(slab.sources.size()),
          in((slab.picks.size() + kGroup - 1) / kGroup * kGroup) {
        int halo = 0;
        for (const Source& source : slab.sources) halo = std::max(halo, source.halo);
        held = kSlices + 2 * halo;
        room.resize(slab.sources.size() * held * kPixels);
        lined.resize(static_cast<size_t>(held) * kPixels);
        spare.resize(kLanes<E> * in.size());
    }

    void block(int64_t item, int64_t row, int64_t pixel, int pixels) {
        for (int64_t first = slab.start; first < slab.stop; first += kSlices) {
            const int64_t end = std::min(first + kSlices, slab.stop);
            for (size_t j = 0; j < rows.size(); ++j) rows[j] = read_rows(j, item, first, end, row, pixel, pixels);
            for (int64_t s = first; s < end; ++s) {
                for (int c = 0; c < channels; ++c) {
                    const Pick pick = slab.picks[c];
                    const int64_t place = std::clamp<int64_t>(s + pick.offset, 0, slab.slices - 1);
                    in[c] = rows[pick.source].data + (place - rows[pick.source].first) * rows[pick.source].stride;
                }
                for (size_t c = channels; c < in.size(); ++c) in[c] = in[channels - 1];
                const int64_t image = item * (slab.stop - slab.start) + s - slab.start;
                const int64_t at = ((image * slab.height + row) * slab.width + pixel) * channels;
                interleave(in.data(), channels, pixels, static_cast<E*>(slab.out.data) + at, spare.data());
            }
        }
    }

    Rows<E> read_rows(size_t j, int64_t item, int64_t first, int64_t end, int64_t row, int64_t pixel, int pixels) {
        const Source& source = slab.sources[j];
        first = std::max<int64_t>(0, first - source.halo);
        const int count = static_cast<int>(std::min(slab.slices, end + source.halo) - first);
        const int64_t offset = item * source.item + first * source.slice + row * source.row + pixel * source.pixel;
        E* copy = room.data() + j * held * kPixels;
        if (source.dtype == slab.out.dtype) {
            const E* from = static_cast<const E*>(source.data) + offset;
            if (source.pixel == 1) return {from, first, source.slice};
            line_up(from, source.slice, source.pixel, count, pixels, copy);
            return {copy, first, kPixels};
        }
        if (source.dtype == DType::kFloat32) {
            convert_rows(static_cast<const uint32_t*>(source.data) + offset, source, count, pixels, copy);
        } else {
            convert_rows(static_cast<const uint16_t*>(source.data) + offset, source, count, pixels, copy);
        }
        return {copy, first, kPixels};
    }

    template <typename S>
    void convert_rows(const S* from, const Source& source, int count, int pixels, E* out) {
        int64_t stride = source.slice;
        if (source.pixel != 1) {
            S* turned = reinterpret_cast<S*>(lined.data());
            line_up(from, source.slice, source.pixel, count, pixels, turned);
            from = turned;
            stride = kPixels;
        }
        for (int s = 0; s < count; ++s) {
            convert(source.dtype, from + s * stride, pixels, slab.out.dtype, out + s * kPixels);
        }
    }
};

template <typename E>
void gather_as(const Slab& slab, int64_t batch, int threads) {
    const int64_t blocks = (slab.width + kPixels - 1) / kPixels;
    const int64_t elements = (slab.stop - slab.start) * kPixels * static_cast<int64_t>(slab.picks.size());
    const int64_t grain = 65536 / elements + 1;
    parallel_for(batch * slab.height * blocks, grain, threads, [&](int64_t begin, int64_t end) {
        Worker<E> worker(slab);
        for (int64_t i = begin; i < end; ++i) {
            const int64_t pixel = i % blocks * kPixels, row = i / blocks % slab.height;
            worker.block(i / blocks / slab.height, row, pixel,
                         static_cast<int>(std::min<int64_t>(kPixels, slab.width - pixel)));
        }
    });
}

void gather(Slab& slab, int64_t batch, int threads) {
    const auto whole = [&](const Source& source) { return source.row == slab.width * source.pixel; };
    if (std::all_of(slab.sources.begin(), slab.sources.end(), whole)) {  // a slice is one run of pixels
        slab.width *= slab.height;
        slab.height = 1;
    }
    const int64_t elements = slab.out.size[0] * slab.height * slab.width * static_cast<int64_t>(slab.picks.size());
    if (elements == 0) return;
    const bool single = slab.out.dtype == DType::kFloat32;
    prefer_huge_pages(slab.out);
    if (single) {
        gather_as<uint32_t>(slab, batch, threads);
    } else {
        gather_as<uint16_t>(slab, batch, threads);
    }
}

// Sources and picks of the slab, in the order of the result's channels: condition, common, x_t.
Slab describe(const View& out, const View& x_t, const View& condition, const std::optional<View>& common,
              const std::vector<int64_t>& seen, int axis, int64_t start, int64_t stop, int context, bool by_slice) {
    std::array<int, 2> plane{};
    for (int dim = 2, place = 0; dim < 5; ++dim) {
        if (dim != axis) plane[place++] = dim;
    }
    Slab slab{out, {}, {}, start, stop, x_t.size[axis], x_t.size[plane[0]], x_t.size[plane[1]]};
    const auto add = [&](const View& volume, int64_t channel, int halo) {
        const int64_t bytes = volume.dtype == DType::kFloat32 ? 4 : 2;
        const char* data = static_cast<const char*>(volume.data) + channel * volume.stride[1] * bytes;
        slab.sources.push_back({data, volume.dtype, volume.stride[0], volume.stride[axis], volume.stride[plane[0]],
                                volume.stride[plane[1]], halo});
    };
    const int count = static_cast<int>(seen.size()), span = 2 * context + 1;
    for (const int64_t channel : seen) add(condition, channel, context);
    for (int i = 0; i < count * span; ++i) {
        slab.picks.push_back(by_slice ? Pick{i % count, i / count - context} : Pick{i / span, i % span - context});
    }
    for (const View* volume : {common ? &*common : nullptr, &x_t}) {
        for (int64_t channel = 0; volume != nullptr && channel < volume->size[1]; ++channel) {
            slab.picks.push_back({static_cast<int>(slab.sources.size()), 0});
            add(*volume, channel, 0);
        }
    }
    return slab;
}

}  // namespace

void bind_gather_slices(pybind11::module_& m) {
    namespace py = pybind11;
    m.def(
        "gather_slices",
        [](const View& out, const View& x_t, const View& condition, const std::optional<View>& common,
           const std::vector<int64_t>& channels, int axis, int64_t start, int64_t stop, int context, bool by_slice,
           int threads) {
            py::gil_scoped_release unlocked;
            Slab slab = describe(out, x_t, condition, common, channels, axis, start, stop, context, by_slice);
            gather(slab, x_t.size[0], threads);
        },
        py::arg("out"), py::arg("x_t"), py::arg("condition"), py::arg("common"), py::arg("channels"), py::arg("axis"),
        py::arg("start"), py::arg("stop"), py::arg("context"), py::arg("by_slice"), py::arg("threads"),
        "Write slices start .. stop of volumes [B, C, D, H, W] into `out` [B·n, C, h, w], channels last.");
}

}  // namespace scorefusion
