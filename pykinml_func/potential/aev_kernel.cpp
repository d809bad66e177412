// AEVs of many structures on the CPU, and the products of their derivatives with vectors, in closed form.
//
// Equations 3 and 4 of Smith et al. 2017, doi 10.1039/C6SC05720A, with aevmod's two changes (see aev.py). Only atoms
// within a cutoff of a centre are looked at further, so that the work grows with the number of near pairs of
// neighbours. Loops over plain arrays, which compilers turn into vector instructions.
//
// S species, R radial shells, A angular shells, Q sections (QP: padded to whole vectors), D AEV length,
// n atoms of one structure
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using Int = std::int64_t;

constexpr int PADDING = 8;  // rows are padded to a multiple of this, so to whole vectors
constexpr int BLOCK = 32;   // pairs of neighbours evaluated together; what they need stays in the first-level cache
constexpr double COLLINEAR = 1e-24;  // sin² of an angle that only rounding keeps from 0 or 180 degrees

constexpr int padded_length(int length) { return (length + PADDING - 1) / PADDING * PADDING; }

// What exp needs of each precision: ln 2 in two parts, and the number whose addition rounds to a whole one.
template <class T> struct Float;
template <> struct Float<double> {
    using Bits = std::int64_t;
    static constexpr int mantissa = 52, degree = 13;
    static constexpr double round = 0x1.8p52, ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;
    static constexpr double least = -708;
};
template <> struct Float<float> {
    using Bits = std::int32_t;
    static constexpr int mantissa = 23, degree = 7;
    static constexpr float round = 0x1.8p23f, ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
    static constexpr float least = -87;
};

constexpr double INVERSE_FACTORIAL[] = {
    1.0, 1.0, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320, 1.0 / 362880,
    1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800, 1.0 / 87178291200, 1.0 / 1307674368000,
    1.0 / 20922789888000};

// A few numbers that the processor handles at once, kept in a register where compilers would not do so unasked.
template <class T> struct Lanes {
    typedef T Vector __attribute__((vector_size(32)));
    static constexpr int count = 32 / sizeof(T);

    static Vector load(const T* from) {
        Vector vector;
        std::memcpy(&vector, from, sizeof vector);
        return vector;
    }
    static void store(const Vector& vector, T* to) { std::memcpy(to, &vector, sizeof vector); }
    static T sum(const Vector& vector) {
        T total = 0;
        for (int l = 0; l < count; ++l) total += vector[l];
        return total;
    }
};

// exp(x) for x <= 0, without a branch or a call: 2^n times the Taylor series of what is left, at most ln(2)/2.
template <class T> inline T exponential(T x) {
    using F = Float<T>;
    x = x < F::least ? F::least : x;
    const T shifted = x * T(1.4426950408889634) + F::round;
    const T whole = shifted - F::round;
    const T rest = (x - whole * F::ln2_high) - whole * F::ln2_low;
    T series = T(INVERSE_FACTORIAL[F::degree]);
#pragma GCC unroll 16
    for (int k = F::degree - 1; k >= 0; --k) series = series * rest + T(INVERSE_FACTORIAL[k]);
    typename F::Bits exponent, bits;
    std::memcpy(&exponent, &shifted, sizeof exponent);
    std::memcpy(&bits, &series, sizeof bits);
    bits += exponent << F::mantissa;
    std::memcpy(&series, &bits, sizeof series);
    return series;
}

// The cutoff 1/2 cos(pi x) + 1/2 = cos²(pi x / 2) for x in [0, 1], and its derivative by x; 0 beyond.
// With t = pi x / 2 - pi / 4 the series of sin and cos converge fast.
template <class T> inline void cutoff(T x, T& value, T& slope) {
    const T inside = x <= 1 ? T(1) : T(0);
    const T t = T(1.5707963267948966) * (x < 1 ? x : T(1)) - T(0.78539816339744831), square = -t * t;
    T sine = T(INVERSE_FACTORIAL[15]), cosine = T(INVERSE_FACTORIAL[16]);
#pragma GCC unroll 16
    for (int k = 13; k > 0; k -= 2) sine = sine * square + T(INVERSE_FACTORIAL[k]);
#pragma GCC unroll 16
    for (int k = 14; k >= 0; k -= 2) cosine = cosine * square + T(INVERSE_FACTORIAL[k]);
    sine *= t;
    const T c = (cosine - sine) * T(0.70710678118654752), s = (cosine + sine) * T(0.70710678118654752);
    value = inside * c * c;
    slope = inside * T(-3.1415926535897932) * s * c;
}

// The settings of AEVConfig, in the order of `_grid` in aev_kernel.py.
template <class T> struct Grid {
    int species, radial, shells, sections, stride, length;
    T radial_cutoff, angular_cutoff, beta, radial_eta, angular_eta, radial_prefactor, angular_prefactor;
    double zeta;
    std::vector<T> radial_shifts, shell_shifts, cosines, sines;  // the last two padded to `stride`

    Grid(const Int* sizes, const double* values)
        : species(int(sizes[0])), radial(int(sizes[1])), shells(int(sizes[2])), sections(int(sizes[3])),
          stride(padded_length(sections)), length(species * radial + kinds() * shells * sections),
          radial_cutoff(T(values[0])), angular_cutoff(T(values[1])), beta(T(values[2])), radial_eta(T(values[3])),
          angular_eta(T(values[4])), radial_prefactor(T(values[5])), angular_prefactor(T(values[6])), zeta(values[7]),
          cosines(stride), sines(stride) {
        const double* next = values + 8;
        radial_shifts.assign(next, next + radial);
        shell_shifts.assign(next + radial, next + radial + shells);
        next += radial + shells;
        for (int q = 0; q < sections; ++q) cosines[q] = T(std::cos(next[q])), sines[q] = T(std::sin(next[q]));
    }
    int kinds() const { return species * (species + 1) / 2; }                          // unordered pairs of species
    int kind(int s, int t) const { return s * species - s * (s - 1) / 2 + t - s; }     // of s <= t
    int block() const { return shells * stride; }                                      // padded terms of one kind
};

// The atoms near one centre, those of one species together.
template <class T> struct Neighbours {
    std::vector<int> atom, start, close, close_start;  // close: those within the angular cutoff; starts: a species each
    std::vector<T> length, x, y, z, radial, radial_slope, angular, angular_slope;  // unit vectors; cutoff functions
    int count = 0;

    void reserve(int n, int species) {
        for (auto* list : {&atom, &close}) list->resize(n);
        for (auto* list : {&start, &close_start}) list->resize(species + 1);
        for (auto* list : {&length, &x, &y, &z, &radial, &radial_slope, &angular, &angular_slope}) list->resize(n);
    }
};

// One structure, its atoms sorted by species.
template <class T> struct Structure {
    int n = 0;
    std::vector<Int> row, listed;    // where each atom is in the arrays of all structures; its place in the structure
    std::vector<int> kind, start;    // its species; the first atom of each species
    std::vector<T> x, y, z, squares;

    void load(int species, Int first, Int end, const Int* atoms, const Int* species_of, const T* positions) {
        n = int(end - first);
        start.assign(species + 1, 0);
        for (Int a = first; a < end; ++a) ++start[species_of[atoms[a]] + 1];
        for (int s = 0; s < species; ++s) start[s + 1] += start[s];
        for (auto* list : {&row, &listed}) list->resize(n);
        kind.resize(n);
        for (auto* list : {&x, &y, &z, &squares}) list->resize(n);
        std::vector<int> next(start);
        for (Int a = first; a < end; ++a) {
            const Int from = atoms[a];
            const int to = next[species_of[from]]++;
            row[to] = from, listed[to] = a - first, kind[to] = int(species_of[from]);
            x[to] = positions[3 * from], y[to] = positions[3 * from + 1], z[to] = positions[3 * from + 2];
        }
    }

    void near(const Grid<T>& grid, int centre, Neighbours<T>& found) {
        const T cx = x[centre], cy = y[centre], cz = z[centre];
        for (int j = 0; j < n; ++j) {
            const T dx = x[j] - cx, dy = y[j] - cy, dz = z[j] - cz;
            squares[j] = dx * dx + dy * dy + dz * dz;
        }
        const T widest = std::max(grid.radial_cutoff, grid.angular_cutoff);
        int m = 0;
        for (int s = 0; s < grid.species; ++s) {
            found.start[s] = m;
            for (int j = start[s]; j < start[s + 1]; ++j) {
                found.atom[m] = j;
                m += squares[j] <= widest * widest && j != centre;
            }
        }
        found.start[grid.species] = found.count = m;
        for (int a = 0; a < m; ++a) {
            const int j = found.atom[a];
            const T length = std::sqrt(squares[j]), inverse = 1 / length;
            found.length[a] = length;
            found.x[a] = (x[j] - cx) * inverse, found.y[a] = (y[j] - cy) * inverse, found.z[a] = (z[j] - cz) * inverse;
        }
        const T radial = 1 / grid.radial_cutoff, angular = 1 / grid.angular_cutoff;
        for (int a = 0; a < m; ++a) {
            T value, slope;
            cutoff(found.length[a] * radial, value, slope);
            found.radial[a] = value, found.radial_slope[a] = slope * radial;
            cutoff(found.length[a] * angular, value, slope);
            found.angular[a] = value, found.angular_slope[a] = slope * angular;
        }
        m = 0;
        for (int s = 0; s < grid.species; ++s) {
            found.close_start[s] = m;
            for (int a = found.start[s]; a < found.start[s + 1]; ++a) {
                found.close[m] = a;
                m += found.length[a] <= grid.angular_cutoff;
            }
        }
        found.close_start[grid.species] = m;
    }
};

// At most BLOCK pairs (j, k) of close neighbours of one centre, and the factors of their terms.
template <class T> struct Pairs {
    int count = 0;
    int j[BLOCK], k[BLOCK];
    T mean[BLOCK], cosine[BLOCK];              // (r_j + r_k) / 2; cos(theta)
    T wx[BLOCK], wy[BLOCK], wz[BLOCK];         // u_j x u_k
    std::vector<T> gaussians;                  // (BLOCK, A): the radial factor without its cutoffs
    std::vector<T> sections, slopes;           // (BLOCK, QP): the angular factor, and its derivative by cos(theta)
    std::vector<T> base, square;               // (BLOCK, QP): scratch
    std::vector<T> shells, shell_changes;      // (BLOCK, A): scratch of the callers

    explicit Pairs(const Grid<T>& grid)
        : gaussians(BLOCK * grid.shells), sections(BLOCK * grid.stride), slopes(sections), base(sections),
          square(sections), shells(gaussians), shell_changes(gaussians) {}

    template <bool derivatives> void evaluate(const Grid<T>& grid, const Neighbours<T>& at) {
        T sine[BLOCK], bend[BLOCK];  // of the angle whose cosine is beta cos(theta); d sine / d cos(theta)
        const T beta = grid.beta, own = 1 - beta * beta;
        for (int p = 0; p < count; ++p) {
            const int a = j[p], b = k[p];
            const T ax = at.x[a], ay = at.y[a], az = at.z[a], bx = at.x[b], by = at.y[b], bz = at.z[b];
            cosine[p] = ax * bx + ay * by + az * bz;
            wx[p] = ay * bz - az * by, wy[p] = az * bx - ax * bz, wz[p] = ax * by - ay * bx;
            mean[p] = T(0.5) * (at.length[a] + at.length[b]);
        }
        for (int p = 0; p < count; ++p) {  // 1 - beta² cos² without cancellation near collinear atoms
            const T square_of_sine = own + beta * beta * (wx[p] * wx[p] + wy[p] * wy[p] + wz[p] * wz[p]);
            const bool bent = square_of_sine > T(COLLINEAR);
            const T root = std::sqrt(bent ? square_of_sine : T(1));
            sine[p] = bent ? root : T(0);
            bend[p] = bent ? -beta * beta * cosine[p] / root : T(0);
        }
        const int stride = grid.stride;
        for (int p = 0; p < count; ++p)
            for (int r = 0; r < grid.shells; ++r) {
                const T offset = mean[p] - grid.shell_shifts[r];
                gaussians[p * grid.shells + r] = -grid.angular_eta * offset * offset;
            }
        T* values = gaussians.data();
        for (int i = 0; i < count * grid.shells; ++i) values[i] = grid.angular_prefactor * exponential(values[i]);
        for (int p = 0; p < count; ++p) {
            const T scaled = beta * cosine[p];
            for (int q = 0; q < stride; ++q) {
                base[p * stride + q] = T(0.5) + T(0.5) * (scaled * grid.cosines[q] + sine[p] * grid.sines[q]);
                if (derivatives)
                    slopes[p * stride + q] = T(0.5) * (beta * grid.cosines[q] + bend[p] * grid.sines[q]);
            }
        }
        raise<derivatives>(T(grid.zeta), count * stride);
    }

    // sections = base^zeta, and slopes times zeta base^(zeta - 1); whole exponents by squaring.
    template <bool derivatives> void raise(T zeta, int entries) {
        T *lower = sections.data(), *root = base.data(), *doubled = square.data(), *slope = slopes.data();
        const bool whole = zeta >= 1 && std::floor(zeta) == zeta;
        for (int i = 0; i < entries; ++i) {
            root[i] = whole ? root[i] : std::max(root[i], T(0));  // rounding leaves about -1e-17 where it is 0
            lower[i] = 1, doubled[i] = root[i];
        }
        if (!whole)
            for (int i = 0; i < entries; ++i) lower[i] = std::pow(root[i], zeta - 1);
        for (long rest = whole ? long(zeta) - 1 : 0; rest > 0; rest >>= 1) {
            if (rest & 1)
                for (int i = 0; i < entries; ++i) lower[i] *= doubled[i];
            for (int i = 0; i < entries; ++i) doubled[i] *= doubled[i];
        }
        if (derivatives)
            for (int i = 0; i < entries; ++i) slope[i] *= zeta * lower[i];
        for (int i = 0; i < entries; ++i) lower[i] *= root[i];
    }

    // d cos(theta) / d(position of j), and of k. As double cross products they are never longer than the sine that
    // their factor `bend` is divided by.
    void turns(const Neighbours<T>& at, int p, T (&of_j)[3], T (&of_k)[3]) const {
        const int a = j[p], b = k[p];
        const T near = 1 / at.length[a], far = 1 / at.length[b];
        of_j[0] = (wy[p] * at.z[a] - wz[p] * at.y[a]) * near, of_k[0] = (at.y[b] * wz[p] - at.z[b] * wy[p]) * far;
        of_j[1] = (wz[p] * at.x[a] - wx[p] * at.z[a]) * near, of_k[1] = (at.z[b] * wx[p] - at.x[b] * wz[p]) * far;
        of_j[2] = (wx[p] * at.y[a] - wy[p] * at.x[a]) * near, of_k[2] = (at.x[b] * wy[p] - at.y[b] * wx[p]) * far;
    }
};

// Calls consume(kind) for every block of pairs of close neighbours, of one unordered pair of species each.
template <bool derivatives, class T, class Consume>
inline void each_block(const Grid<T>& grid, const Neighbours<T>& at, Pairs<T>& pairs, Consume consume) {
    for (int s = 0; s < grid.species; ++s)
        for (int t = s; t < grid.species; ++t) {
            const int end = at.close_start[s + 1], last = at.close_start[t + 1];
            const auto first_of = [&](int a) { return s == t ? a + 1 : at.close_start[t]; };
            int a = at.close_start[s], b = first_of(a);
            while (a < end) {
                for (pairs.count = 0; a < end && pairs.count < BLOCK;) {
                    if (b < last)
                        pairs.j[pairs.count] = at.close[a], pairs.k[pairs.count++] = at.close[b++];
                    else
                        ++a, b = first_of(a);
                }
                if (pairs.count == 0) continue;
                pairs.template evaluate<derivatives>(grid, at);
                consume(grid.kind(s, t));
            }
        }
}

// sums (A, QP) += the outer products of shells (count, A) and sections (count, QP).
template <class T>
inline void add_products(const Grid<T>& grid, int count, const T* shells, const T* sections, T* sums) {
    using L = Lanes<T>;
    for (int r = 0; r < grid.shells; ++r)
        for (int q = 0; q < grid.stride; q += L::count) {
            auto sum = L::load(sums + r * grid.stride + q);
            for (int p = 0; p < count; ++p)
                sum += shells[p * grid.shells + r] * L::load(sections + p * grid.stride + q);
            L::store(sum, sums + r * grid.stride + q);
        }
}

// What one thread works with.
template <class T> struct Worker {
    const Grid<T>& grid;
    Structure<T> atoms;
    Neighbours<T> at;
    Pairs<T> pairs;
    std::vector<T> gaussians;                // (neighbours, R) of the radial part
    std::vector<T> padded_terms;             // (L, kinds, A, QP)
    std::vector<T> vx, vy, vz;               // (L, n): vectors of the atoms
    std::vector<T> stretch;                  // (neighbours): change of each length

    explicit Worker(const Grid<T>& grid) : grid(grid), pairs(grid) {}

    void load(Int first, Int end, const Int* listed, const Int* species, const T* positions) {
        atoms.load(grid.species, first, end, listed, species, positions);
        at.reserve(atoms.n, grid.species);
        gaussians.resize(std::size_t(atoms.n) * grid.radial);
        stretch.resize(atoms.n);
    }

    void approach(int centre) {
        atoms.near(grid, centre, at);
        for (int a = 0; a < at.count; ++a)
            for (int r = 0; r < grid.radial; ++r) {
                const T offset = at.length[a] - grid.radial_shifts[r];
                gaussians[a * grid.radial + r] = -grid.radial_eta * offset * offset;
            }
        T* values = gaussians.data();
        for (int i = 0; i < at.count * grid.radial; ++i) values[i] = grid.radial_prefactor * exponential(values[i]);
    }

    // d(radial term r of neighbour a) / d(its length)
    T radial_slope(int a, int r) const {
        const T offset = at.length[a] - grid.radial_shifts[r];
        return gaussians[a * grid.radial + r] * (at.radial_slope[a] - 2 * grid.radial_eta * offset * at.radial[a]);
    }

    void write_angular(const T* terms, T* out) const {
        for (int row = 0; row < grid.kinds() * grid.shells; ++row)
            for (int q = 0; q < grid.sections; ++q) out[row * grid.sections + q] = terms[row * grid.stride + q];
    }

    // AEVs (rows, D) of one structure.
    void aevs(T* out) {
        padded_terms.resize(grid.kinds() * grid.block());
        for (int centre = 0; centre < atoms.n; ++centre) {
            approach(centre);
            T* row = out + atoms.row[centre] * grid.length;
            std::fill(row, row + grid.species * grid.radial, T(0));
            for (int a = 0; a < at.count; ++a)
                for (int r = 0, first = atoms.kind[at.atom[a]] * grid.radial; r < grid.radial; ++r)
                    row[first + r] += gaussians[a * grid.radial + r] * at.radial[a];
            std::fill(padded_terms.begin(), padded_terms.end(), T(0));
            each_block<false>(grid, at, pairs, [&](int kind) {
                weigh();
                add_products(grid, pairs.count, pairs.shells.data(), pairs.sections.data(),
                             padded_terms.data() + kind * grid.block());
            });
            write_angular(padded_terms.data(), row + grid.species * grid.radial);
        }
    }

    // pairs.shells: gaussians times both cutoffs.
    void weigh() {
        for (int p = 0; p < pairs.count; ++p) {
            const T weight = at.angular[pairs.j[p]] * at.angular[pairs.k[p]];
            for (int r = 0; r < grid.shells; ++r)
                pairs.shells[p * grid.shells + r] = pairs.gaussians[p * grid.shells + r] * weight;
        }
    }

    // out (L, rows, 3) = the vectors (L, rows, D) contracted with dAEV/dxyz.
    void pull(Int levels, Int rows, const T* vectors, T* out) {
        for (auto* list : {&vx, &vy, &vz}) list->assign(levels * atoms.n, T(0));
        padded_terms.assign(levels * grid.kinds() * grid.block(), T(0));
        for (int centre = 0; centre < atoms.n; ++centre) {
            approach(centre);
            for (Int level = 0; level < levels; ++level) {
                const T* row = vectors + (level * rows + atoms.row[centre]) * grid.length;
                pull_radial(level, centre, row);
                row += grid.species * grid.radial;
                T* terms = padded_terms.data() + level * grid.kinds() * grid.block();
                for (int line = 0; line < grid.kinds() * grid.shells; ++line)
                    for (int q = 0; q < grid.sections; ++q)
                        terms[line * grid.stride + q] = row[line * grid.sections + q];
            }
            each_block<true>(grid, at, pairs, [&](int kind) {
                for (Int level = 0; level < levels; ++level) {
                    const T* terms = padded_terms.data() + (level * grid.kinds() + kind) * grid.block();
                    for (int p = 0; p < pairs.count; ++p) pull_pair(level, centre, p, terms);
                }
            });
        }
        for (Int level = 0; level < levels; ++level)
            for (int i = 0; i < atoms.n; ++i) {
                T* to = out + (level * rows + atoms.row[i]) * 3;
                to[0] = vx[level * atoms.n + i], to[1] = vy[level * atoms.n + i], to[2] = vz[level * atoms.n + i];
            }
    }

    void move(Int level, int centre, int a, T x, T y, T z) {
        const Int to = level * atoms.n + at.atom[a], from = level * atoms.n + centre;
        vx[to] += x, vy[to] += y, vz[to] += z;
        vx[from] -= x, vy[from] -= y, vz[from] -= z;
    }

    void pull_radial(Int level, int centre, const T* row) {
        for (int a = 0; a < at.count; ++a) {
            T slope = 0;
            for (int r = 0, first = atoms.kind[at.atom[a]] * grid.radial; r < grid.radial; ++r)
                slope += row[first + r] * radial_slope(a, r);
            move(level, centre, a, slope * at.x[a], slope * at.y[a], slope * at.z[a]);
        }
    }

    // With P the gaussians and g the vector: value = sum g P S, widening = sum g P (mean - shift) S,
    // turning = sum g P dS/dcos(theta).
    void pull_pair(Int level, int centre, int p, const T* terms) {
        const T *gaussian = &pairs.gaussians[p * grid.shells], *shift = grid.shell_shifts.data();
        const T *section = &pairs.sections[p * grid.stride], *slope = &pairs.slopes[p * grid.stride];
        using L = Lanes<T>;
        typename L::Vector value{}, widening{}, turning{};
        for (int q = 0; q < grid.stride; q += L::count) {
            typename L::Vector plain{}, moment{};
            for (int r = 0; r < grid.shells; ++r) {
                const auto term = L::load(terms + r * grid.stride + q);
                plain += gaussian[r] * term;
                moment += gaussian[r] * (pairs.mean[p] - shift[r]) * term;
            }
            value += plain * L::load(section + q);
            widening += moment * L::load(section + q);
            turning += plain * L::load(slope + q);
        }
        const int a = pairs.j[p], b = pairs.k[p];
        const T fa = at.angular[a], fb = at.angular[b], all = L::sum(value);
        const T wide = -grid.angular_eta * L::sum(widening) * fa * fb, turn = L::sum(turning) * fa * fb;
        const T sa = wide + at.angular_slope[a] * fb * all, sb = wide + fa * at.angular_slope[b] * all;
        T tj[3], tk[3];
        pairs.turns(at, p, tj, tk);
        move(level, centre, a, sa * at.x[a] + turn * tj[0], sa * at.y[a] + turn * tj[1], sa * at.z[a] + turn * tj[2]);
        move(level, centre, b, sb * at.x[b] + turn * tk[0], sb * at.y[b] + turn * tk[1], sb * at.z[b] + turn * tk[2]);
    }

    // out (L, rows, D) = the change of the AEVs when the atoms move by the vectors (L, rows, 3).
    void push(Int levels, Int rows, const T* vectors, T* out) {
        padded_terms.resize(grid.kinds() * grid.block());
        for (auto* list : {&vx, &vy, &vz}) list->resize(atoms.n);
        for (Int level = 0; level < levels; ++level) {
            for (int i = 0; i < atoms.n; ++i) {
                const T* from = vectors + (level * rows + atoms.row[i]) * 3;
                vx[i] = from[0], vy[i] = from[1], vz[i] = from[2];
            }
            for (int centre = 0; centre < atoms.n; ++centre) {
                approach(centre);
                T* row = out + (level * rows + atoms.row[centre]) * grid.length;
                push_radial(centre, row);
                std::fill(padded_terms.begin(), padded_terms.end(), T(0));
                each_block<true>(grid, at, pairs, [&](int kind) {
                    change(centre);
                    T* terms = padded_terms.data() + kind * grid.block();
                    add_products(grid, pairs.count, pairs.shell_changes.data(), pairs.sections.data(), terms);
                    add_products(grid, pairs.count, pairs.shells.data(), pairs.slopes.data(), terms);
                });
                write_angular(padded_terms.data(), row + grid.species * grid.radial);
            }
        }
    }

    void push_radial(int centre, T* row) {
        std::fill(row, row + grid.species * grid.radial, T(0));
        for (int a = 0; a < at.count; ++a) {
            const int j = at.atom[a];
            stretch[a] = at.x[a] * (vx[j] - vx[centre]) + at.y[a] * (vy[j] - vy[centre]) + at.z[a] * (vz[j] - vz[centre]);
            for (int r = 0, first = atoms.kind[j] * grid.radial; r < grid.radial; ++r)
                row[first + r] += stretch[a] * radial_slope(a, r);
        }
    }

    // pairs.shell_changes: change of `pairs.shells`; pairs.slopes: change of `pairs.sections`.
    void change(int centre) {
        weigh();
        for (int p = 0; p < pairs.count; ++p) {
            const int a = pairs.j[p], b = pairs.k[p], j = at.atom[a], k = at.atom[b];
            T tj[3], tk[3];
            pairs.turns(at, p, tj, tk);
            const T turn = tj[0] * (vx[j] - vx[centre]) + tj[1] * (vy[j] - vy[centre]) + tj[2] * (vz[j] - vz[centre]) +
                           tk[0] * (vx[k] - vx[centre]) + tk[1] * (vy[k] - vy[centre]) + tk[2] * (vz[k] - vz[centre]);
            for (int q = 0; q < grid.stride; ++q) pairs.slopes[p * grid.stride + q] *= turn;
            const T fa = at.angular[a], fb = at.angular[b];
            const T wide = -grid.angular_eta * (stretch[a] + stretch[b]) * fa * fb;
            const T cut = at.angular_slope[a] * stretch[a] * fb + fa * at.angular_slope[b] * stretch[b];
            for (int r = 0; r < grid.shells; ++r)
                pairs.shell_changes[p * grid.shells + r] =
                    pairs.gaussians[p * grid.shells + r] * (wide * (pairs.mean[p] - grid.shell_shifts[r]) + cut);
        }
    }

    // For every ordered pair of listed atoms, d(AEV of the first)/d(position of the second): (n (n - 1), 3, B), where
    // B = R + S A Q holds the radial terms of the second atom's species and, for each species of third atoms, the
    // angular ones. The rest of the AEV does not depend on that atom.
    void jacobians(T* out) {
        const Int terms = grid.shells * grid.sections, width = grid.radial + grid.species * terms, n = atoms.n;
        std::fill(out, out + n * (n - 1) * 3 * width, T(0));
        for (int centre = 0; centre < n; ++centre) {
            approach(centre);
            const Int i = atoms.listed[centre];
            const auto block = [&](int a) {
                const Int j = atoms.listed[at.atom[a]];
                return out + (i * (n - 1) + j - (j > i)) * 3 * width;
            };
            for (int a = 0; a < at.count; ++a)
                for (int r = 0; r < grid.radial; ++r) {
                    const T slope = radial_slope(a, r);
                    T* to = block(a) + r;
                    to[0] = slope * at.x[a], to[width] = slope * at.y[a], to[2 * width] = slope * at.z[a];
                }
            each_block<true>(grid, at, pairs, [&](int) {
                for (int p = 0; p < pairs.count; ++p) {
                    const int a = pairs.j[p], b = pairs.k[p];
                    T tj[3], tk[3];
                    pairs.turns(at, p, tj, tk);
                    add_block(p, a, b, tj, block(a) + grid.radial + atoms.kind[at.atom[b]] * terms, width);
                    add_block(p, b, a, tk, block(b) + grid.radial + atoms.kind[at.atom[a]] * terms, width);
                }
            });
        }
    }

    // The derivatives of pair p's terms by the position of neighbour `a`.
    void add_block(int p, int a, int other, const T (&turn)[3], T* out, Int width) {
        const T unit[3] = {at.x[a], at.y[a], at.z[a]}, fa = at.angular[a], fb = at.angular[other];
        const T *section = &pairs.sections[p * grid.stride], *slope = &pairs.slopes[p * grid.stride];
        for (int r = 0; r < grid.shells; ++r) {
            const T height = pairs.gaussians[p * grid.shells + r] * fb;
            const T stretched =
                height * (at.angular_slope[a] - grid.angular_eta * (pairs.mean[p] - grid.shell_shifts[r]) * fa);
            for (int x = 0; x < 3; ++x) {
                const T along = stretched * unit[x], across = height * fa * turn[x];
                T* to = out + x * width + r * grid.sections;
                for (int q = 0; q < grid.sections; ++q) to[q] += along * section[q] + across * slope[q];
            }
        }
    }
};

enum Operation { AEVS, PULL, PUSH, JACOBIANS };

struct Call {
    Int operation;
    const Int* sizes;          // S, R, A, Q
    const double* settings;
    const Int *atoms, *offsets, *species;  // rows of the atoms, structure after structure; (M + 1); (rows)
    Int rows, levels;
    const void *positions, *vectors;
    void* out;
};

template <class T> void work(const Call& call, const Grid<T>& grid, Int begin, Int end) {
    Worker<T> worker(grid);
    const T *positions = static_cast<const T*>(call.positions), *vectors = static_cast<const T*>(call.vectors);
    T* out = static_cast<T*>(call.out);
    const Int width = 3 * (grid.radial + grid.species * grid.shells * grid.sections);
    Int pair = 0;
    for (Int m = 0; m < end; ++m) {
        const Int n = call.offsets[m + 1] - call.offsets[m];
        if (m >= begin && n > 0) {
            worker.load(call.offsets[m], call.offsets[m + 1], call.atoms, call.species, positions);
            if (call.operation == AEVS) worker.aevs(out);
            if (call.operation == PULL) worker.pull(call.levels, call.rows, vectors, out);
            if (call.operation == PUSH) worker.push(call.levels, call.rows, vectors, out);
            if (call.operation == JACOBIANS) worker.jacobians(out + pair * width);
        }
        pair += n * (n - 1);
    }
}

template <class T>
void share(const Call& call, Int structures, Int threads) {
    const Grid<T> grid(call.sizes, call.settings);
    threads = std::max<Int>(1, std::min(threads, structures / 2));
    // torch's own threads, where built with OpenMP: others would wait for a core that those hold on to
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Int t = 0; t < threads; ++t)
        work(call, grid, structures * t / threads, structures * (t + 1) / threads);
}

}  // namespace

extern "C" void pykinml_aev(Int operation, Int single, const Int* sizes, const double* settings, Int structures,
                            const Int* atoms, const Int* offsets, const Int* species, Int rows, const void* positions,
                            Int levels, const void* vectors, void* out, Int threads) {
    const Call call{operation, sizes, settings, atoms, offsets, species, rows, levels, positions, vectors, out};
    if (single)
        share<float>(call, structures, threads);
    else
        share<double>(call, structures, threads);
}
