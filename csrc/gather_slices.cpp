// Cutting 2.5D slices out of volumes: planes of several sources interleaved into channels-last pixels.
//
// A block is a run of pixels through all slices of the slab. Its sources become rows of floats, contiguous along
// the pixels, one a slice: where the volume is laid out so, its own memory; otherwise a copy in the first-level
// cache, turned around where the slices are what runs contiguously (sagittal), so that whole cache lines are used.
// Rows are then interleaved four channels by four pixels.
#include <algorithm>
#include <array>
#include <type_traits>
#include <vector>

#include "common/bind.h"
#include "common/memory.h"
#include "common/parallel.h"
#include "common/transpose.h"

namespace scorefusion {
namespace {

constexpr int kSlices = 16;   // slices whose rows are held at once: a cache line of floats
constexpr int kPixels = 256;  // pixels of a block
constexpr int kGroup = 4;     // the interleaving's unit, and the alignment of a block's channels

struct Source {  // one channel of a volume, as stacks of slices
    const char* data;
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

// Interleaves `pixels` of `channels` rows; `in` is padded to whole groups by repeating a row. A group writes up to
// three elements too many, into the next pixel, which is written after it; the last pixels go through `spare`.
template <int kGroups, typename E>
SF_INLINE void interleave(const E* const* in, int channels, int pixels, E* out, E* spare) {
    constexpr int lanes = kSixteenBytes<E>;
    const int groups = kGroups > 0 ? kGroups : (channels + kGroup - 1) / kGroup;
    const auto some = [&](int at, E* to) {
        for (int g = groups - 1; g >= 0; --g) transpose(in + g * kGroup, at, to + g * kGroup, channels);
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
SF_INLINE void interleave(const E* const* in, int channels, int pixels, E* out, E* spare) {
    switch ((channels + kGroup - 1) / kGroup) {
        case 1: interleave<1>(in, channels, pixels, out, spare); return;
        case 2: interleave<2>(in, channels, pixels, out, spare); return;
        case 3: interleave<3>(in, channels, pixels, out, spare); return;
        default: interleave<0>(in, channels, pixels, out, spare);
    }
}

// Copies `slices` x `pixels` elements, strides as given, into rows of kPixels, one a slice.
template <typename E>
SF_INLINE void line_up(const E* from, int64_t slice, int64_t pixel, int slices, int pixels, E* out) {
    constexpr int lanes = kSixteenBytes<E>;
    int p = 0;
    if (slice == 1 && slices >= lanes) {
        for (; p + kGroup <= pixels; p += kGroup) {
            const E* lines[kGroup];
            for (int i = 0; i < kGroup; ++i) lines[i] = from + (p + i) * pixel;
            for (int s = 0; s < slices; s += lanes) {
                const int at = std::min(s, slices - lanes);
                transpose(lines, at, out + at * kPixels + p, kPixels);
            }
        }
    }
    for (int s = 0; s < slices; ++s) {
        for (int i = p; i < pixels; ++i) out[s * kPixels + i] = from[s * slice + i * pixel];
    }
}

template <typename From, typename To>
SF_INLINE void convert(const From* __restrict from, int count, To* __restrict to) {
    for (int i = 0; i < count; ++i) to[i] = from_float<To>(to_float(from[i]));
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
        spare.resize(kSixteenBytes<E> * in.size());
    }

    SF_INLINE void block(int64_t item, int64_t row, int64_t pixel, int pixels) {
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

    SF_INLINE Rows<E> read_rows(size_t j, int64_t item, int64_t first, int64_t end, int64_t row, int64_t pixel,
                                int pixels) {
        const Source& source = slab.sources[j];
        first = std::max<int64_t>(0, first - source.halo);
        const int count = static_cast<int>(std::min(slab.slices, end + source.halo) - first);
        const int64_t offset = item * source.item + first * source.slice + row * source.row + pixel * source.pixel;
        E* const copy = room.data() + j * held * kPixels;
        const E* const same = reinterpret_cast<const E*>(source.data) + offset;
        if (source.dtype == slab.out.dtype) {
            if (source.pixel == 1) return {same, first, source.slice};
            line_up(same, source.slice, source.pixel, count, pixels, copy);
            return {copy, first, kPixels};
        }
        dispatch(source.dtype, [&](auto* as) SF_LAMBDA_INLINE {
            using From = std::remove_pointer_t<decltype(as)>;
            const From* from = reinterpret_cast<const From*>(source.data) + offset;
            int64_t stride = source.slice;
            if (source.pixel != 1) {
                From* const turned = reinterpret_cast<From*>(lined.data());
                line_up(from, source.slice, source.pixel, count, pixels, turned);
                from = turned;
                stride = kPixels;
            }
            dispatch(slab.out.dtype, [&](auto* to) SF_LAMBDA_INLINE {
                if constexpr (sizeof *to == sizeof(E) && !std::is_same_v<decltype(as), decltype(to)>) {
                    to = reinterpret_cast<decltype(to)>(copy);
                    for (int s = 0; s < count; ++s) convert(from + s * stride, pixels, to + s * kPixels);
                }
            });
        });
        return {copy, first, kPixels};
    }
};

SF_VECTOR_CLONES
void run_block(Worker<uint32_t>& worker, int64_t item, int64_t row, int64_t pixel, int pixels) {
    worker.block(item, row, pixel, pixels);
}

SF_VECTOR_CLONES
void run_block(Worker<uint16_t>& worker, int64_t item, int64_t row, int64_t pixel, int pixels) {
    worker.block(item, row, pixel, pixels);
}

template <typename E>
void gather_as(const Slab& slab, int64_t batch, int threads) {
    const int64_t blocks = (slab.width + kPixels - 1) / kPixels;
    const int64_t elements = (slab.stop - slab.start) * kPixels * static_cast<int64_t>(slab.picks.size());
    parallel_for(batch * slab.height * blocks, 65536 / elements + 1, threads, [&](int64_t begin, int64_t end) {
        Worker<E> worker(slab);
        for (int64_t i = begin; i < end; ++i) {
            const int64_t pixel = i % blocks * kPixels, row = i / blocks;
            run_block(worker, row / slab.height, row % slab.height, pixel,
                      static_cast<int>(std::min<int64_t>(kPixels, slab.width - pixel)));
        }
    });
}

void gather(Slab& slab, int64_t batch, int threads) {
    if (slab.out.size[0] * slab.height * slab.width * static_cast<int64_t>(slab.picks.size()) == 0) return;
    const auto whole = [&](const Source& source) { return source.row == slab.width * source.pixel; };
    if (std::all_of(slab.sources.begin(), slab.sources.end(), whole)) {  // a slice is one run of pixels
        slab.width *= slab.height;
        slab.height = 1;
    }
    prefer_huge_pages(slab.out);
    slab.out.dtype == DType::kFloat32 ? gather_as<uint32_t>(slab, batch, threads)
                                      : gather_as<uint16_t>(slab, batch, threads);
}

// Sources and picks of the slab, in the order of the result's channels: condition, common, x_t.
Slab describe(const View& out, const View& x_t, const View& condition, const View& common,
              const std::vector<int64_t>& seen, int axis, int64_t start, int64_t stop, int context, bool by_slice) {
    std::array<int, 2> plane{};
    for (int dim = 2, place = 0; dim < 5; ++dim) {
        if (dim != axis) plane[place++] = dim;
    }
    Slab slab{out, {}, {}, start, stop, x_t.size[axis], x_t.size[plane[0]], x_t.size[plane[1]]};
    const auto add = [&](const View& volume, int64_t channel, int halo) {
        const char* data = static_cast<const char*>(volume.data) + channel * volume.stride[1] * volume.element_size();
        slab.sources.push_back({data, volume.dtype, volume.stride[0], volume.stride[axis], volume.stride[plane[0]],
                                volume.stride[plane[1]], halo});
    };
    const int count = static_cast<int>(seen.size()), span = 2 * context + 1;
    for (const int64_t channel : seen) add(condition, channel, context);
    for (int i = 0; i < count * span; ++i) {
        slab.picks.push_back(by_slice ? Pick{i % count, i / count - context} : Pick{i / span, i % span - context});
    }
    for (const View& volume : {common, x_t}) {
        for (int64_t channel = 0; volume && channel < volume.size[1]; ++channel) {
            slab.picks.push_back({static_cast<int>(slab.sources.size()), 0});
            add(volume, channel, 0);
        }
    }
    return slab;
}

}  // namespace

void bind_gather_slices(pybind11::module_& m) {
    m.def(
        "gather_slices",
        [](const View& out, const View& x_t, const View& condition, const View& common,
           const std::vector<int64_t>& channels, int axis, int64_t start, int64_t stop, int context, bool by_slice,
           int threads) {
            pybind11::gil_scoped_release unlocked;
            Slab slab = describe(out, x_t, condition, common, channels, axis, start, stop, context, by_slice);
            gather(slab, x_t.size[0], threads);
        },
        "Write slices start .. stop of volumes [B, C, D, H, W] into `out` [B·n, C, h, w], channels last.");
}

}  // namespace scorefusion
