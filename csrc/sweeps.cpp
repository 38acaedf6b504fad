// One instruction set: the sweeps of every storage type, chosen by layout, activation and weights.
#include "interleaved.h"
#include "planar.h"

namespace batchnorm::BN_ISA {
namespace {

template <class T> void moments(const bn_call &c, const Tile &t, Sums &sums) {
    if (c.inner > 1) {
        if (c.weights) moments_planar<T, true>(c, t, sums);
        else moments_planar<T, false>(c, t, sums);
    } else {
        if (c.weights) moments_interleaved<T, true>(c, t, sums);
        else moments_interleaved<T, false>(c, t, sums);
    }
}

template <class T, Kind kind> void reduce_as(const bn_call &c, const Tile &t, Sums &sums) {
    const bool writes = c.dx || c.dz;
    if (c.inner > 1) {
        if (writes) reduce_planar<T, kind, true>(c, t, sums);
        else reduce_planar<T, kind, false>(c, t, sums);
    } else {
        if (writes) reduce_interleaved<T, kind, true>(c, t, sums);
        else reduce_interleaved<T, kind, false>(c, t, sums);
    }
}

template <class T> void reduce(const bn_call &c, const Tile &t, Sums &sums) {
    switch (c.activation) {
        case BN_IDENTITY: return reduce_as<T, Kind::identity>(c, t, sums);
        case BN_RELU: return reduce_as<T, Kind::relu>(c, t, sums);
        case BN_LEAKY_RELU: return reduce_as<T, Kind::leaky_relu>(c, t, sums);
        default: return reduce_as<T, Kind::smooth>(c, t, sums);
    }
}

template <template <class, Kind, bool, Serves> class Body, class T, Kind kind, Serves serves>
void map_by(const bn_call &c, const Tile &t, bool streaming) {
    if (c.inner > 1) map_planar(c, t, Body<T, kind, true, serves>(c, streaming));
    else map_interleaved(c, t, Body<T, kind, false, serves>(c, streaming));
    if (streaming) finish_streams();
}

template <template <class, Kind, bool, Serves> class Body, class T, Kind kind>
void map_as(const bn_call &c, const Tile &t, bool streaming) {
    if constexpr (kind == Kind::identity || kind == Kind::relu) {  // the most common
        using Any = Body<T, kind, true, Serves::everything>;
        const Serves serves = Any::serving(c, streaming);
        if (serves == Serves::training) return map_by<Body, T, kind, Serves::training>(c, t, streaming);
        if constexpr (Any::infers) {
            if (serves == Serves::inference) return map_by<Body, T, kind, Serves::inference>(c, t, streaming);
        }
    }
    map_by<Body, T, kind, Serves::everything>(c, t, streaming);
}

template <template <class, Kind, bool, Serves> class Body, class T>
void map(const bn_call &c, const Tile &t, bool streaming) {
    switch (c.activation) {
        case BN_IDENTITY: return map_as<Body, T, Kind::identity>(c, t, streaming);
        case BN_RELU: return map_as<Body, T, Kind::relu>(c, t, streaming);
        case BN_LEAKY_RELU: return map_as<Body, T, Kind::leaky_relu>(c, t, streaming);
        default: return map_as<Body, T, Kind::smooth>(c, t, streaming);
    }
}

template <class T> constexpr Sweeps of = {moments<T>, reduce<T>, map<Affine, T>, map<Elementwise, T>};

}  // namespace

extern const Table table = {of<float>, of<double>, of<bfloat16>, of<float16>};

}  // namespace batchnorm::BN_ISA
