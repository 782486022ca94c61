/* Matrix products in fp32 of matrices that stay in the cache, so that a pass can do them between its other steps:
 * C = A B or C += A B, where the rows of B are contiguous and a whole number of vector registers long.
 *
 * A tile of C, TILE_ROWS x TILE_VECS registers, is summed along k; k runs in the same order whatever the number of
 * threads. A is read number by number, so it may be a row-major matrix or the transpose of one (`by_column`). */

/* Accumulators, a row of B and a number of A fill the vector registers (32, or 16 before AVX-512). */
#if defined(__AVX512F__)
enum { TILE_ROWS = 6, TILE_VECS = 4 };
#else
enum { TILE_ROWS = 6, TILE_VECS = 2 };
#endif
enum { TILE_WIDTH = TILE_VECS * LANES };

/* What is known to be zero in the square part of a product, and left out. */
enum { DENSE, LOWER_LEFT, UPPER_LEFT, LOWER_RESULT };

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* One tile, k in [from, to). rows, vecs, by_column and add are constants where this is inlined. */
static inline __attribute__((always_inline)) void tile(const int rows, const int vecs, const int by_column,
                                                       const int add, int64_t from, int64_t to, const float *a,
                                                       int64_t lda, const float *b, int64_t ldb, float *c,
                                                       int64_t ldc) {
    vec sum[TILE_ROWS][TILE_VECS];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) sum[i][v] = add ? load_vec_f32(c + i * ldc + v * LANES) : (vec){0};
    for (int64_t k = from; k < to; k++) {
        vec right[TILE_VECS];
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) right[v] = load_vec_f32(b + k * ldb + v * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            const float left = by_column ? a[k * lda + i] : a[i * lda + k];
#pragma GCC unroll 8
            for (int v = 0; v < vecs; v++) sum[i][v] += left * right[v];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) store_vec_f32(c + i * ldc + v * LANES, sum[i][v]);
}

/* What is left over at the edges is done in tiles of these sizes; each one costs time to compile. */
#define TILE_OF(ROWS, VECS) tile(ROWS, VECS, by_column, add, from, to, a, lda, b, ldb, c, ldc)
#define TILES_OF_ROWS(VECS)                \
    switch (rows) {                        \
        case 1: TILE_OF(1, VECS); break;   \
        case 2: TILE_OF(2, VECS); break;   \
        case 4: TILE_OF(4, VECS); break;   \
        default: TILE_OF(TILE_ROWS, VECS); \
    }
static inline int64_t rows_of_tile(int64_t left) { return left >= TILE_ROWS ? TILE_ROWS : left >= 4 ? 4 : left >= 2 ? 2 : 1; }
static inline int64_t vecs_of_tile(int64_t left) { return left >= TILE_VECS ? TILE_VECS : left >= 2 ? 2 : 1; }

static inline __attribute__((always_inline)) void any_tile(int64_t rows, int64_t vecs, const int by_column,
                                                           const int add, int64_t from, int64_t to,
                                                           const float *a, int64_t lda, const float *b,
                                                           int64_t ldb, float *c, int64_t ldc) {
    switch (vecs) {
        case 1: TILES_OF_ROWS(1) break;
#if defined(__AVX512F__)
        case 2: TILES_OF_ROWS(2) break;
#endif
        default: TILES_OF_ROWS(TILE_VECS)
    }
}

/* C [m, n] from A [m, k], or its transpose [k, m], and B [k, n]; n is a multiple of LANES.
 *
 * zeros: LOWER_LEFT, A is lower triangular (beyond k = i it holds zeros for TILE_ROWS numbers); UPPER_LEFT, it is
 * upper triangular, in the same way; LOWER_RESULT, only C's lower triangle is wanted (whole tiles are written). */
static inline __attribute__((always_inline)) void multiply(const int by_column, const int add, int zeros, int64_t m,
                                                           int64_t n, int64_t k, const float *a, int64_t lda,
                                                           const float *b, int64_t ldb, float *c, int64_t ldc) {
    for (int64_t j = 0, vecs; j < n; j += vecs * LANES) {
        vecs = vecs_of_tile((n - j) / LANES);
        for (int64_t i = 0, rows; i < m; i += rows) {
            rows = rows_of_tile(m - i);
            int64_t wanted = vecs;
            if (zeros == LOWER_RESULT) {
                if (j >= i + rows) continue;
                while (wanted > 1 && (wanted / 2) * LANES >= i + rows - j) wanted /= 2;
            }
            any_tile(rows, wanted, by_column, add, zeros == UPPER_LEFT ? i : 0,
                     zeros == LOWER_LEFT ? smaller(i + rows, k) : k, a + (by_column ? i : i * lda), lda, b + j, ldb,
                     c + i * ldc + j, ldc);
        }
    }
}

#define MULTIPLY(NAME, BY_COLUMN, ADD)                                                                            \
    static __attribute__((noinline)) void NAME(int zeros, int64_t m, int64_t n, int64_t k, const float *a,        \
                                               int64_t lda, const float *b, int64_t ldb, float *c, int64_t ldc) { \
        multiply(BY_COLUMN, ADD, zeros, m, n, k, a, lda, b, ldb, c, ldc);                                         \
    }
MULTIPLY(product, 0, 0)                 /* C = A B */
MULTIPLY(product_added, 0, 1)           /* C += A B */
MULTIPLY(product_of_transpose, 1, 0)    /* C = A^T B, A [k, m] */
MULTIPLY(transpose_product_added, 1, 1) /* C += A^T B */

/* Numbers that `pack` writes for B [k, n]. */
static inline int64_t packed_size(int64_t k, int64_t n) { return (n + TILE_WIDTH - 1) / TILE_WIDTH * TILE_WIDTH * k; }

/* B [k, n] = w, or the transpose of w [n, k], in panels [k, TILE_WIDTH] one after another, the last filled up with
 * zeros: what a product reads one after the other. */
static void pack(int transposed, int64_t k, int64_t n, const float *w, float *out) {
    for (int64_t j = 0; j < n; j += TILE_WIDTH, out += k * TILE_WIDTH) {
        const int64_t columns = smaller(n - j, TILE_WIDTH);
        if (columns < TILE_WIDTH) memset(out, 0, (size_t)(k * TILE_WIDTH) * sizeof *out);
        if (transposed)
            for (int64_t c = 0; c < columns; c++)
                for (int64_t i = 0; i < k; i++) out[i * TILE_WIDTH + c] = w[(j + c) * k + i];
        else
            for (int64_t i = 0; i < k; i++)
                memcpy(out + i * TILE_WIDTH, w + i * n + j, (size_t)columns * sizeof *out);
    }
}

/* C [m, n] = A [m, k] B, B packed; rows of C are written up to a multiple of LANES. */
static void packed_product(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *packed, float *c,
                           int64_t ldc) {
    for (int64_t j = 0; j < n; j += TILE_WIDTH, packed += k * TILE_WIDTH)
        product(DENSE, m, smaller((n - j + LANES - 1) / LANES * LANES, TILE_WIDTH), k, a, lda, packed, TILE_WIDTH,
                c + j, ldc);
}

#if defined(__clang__)
#define SHUFFLED(A, B, STEP, HIGH)                                                                  \
    ({                                                                                              \
        vec out_;                                                                                   \
        for (int l_ = 0; l_ < LANES; l_++)                                                          \
            out_[l_] = (HIGH) ? ((l_ & (STEP)) ? (B)[l_] : (A)[l_ + (STEP)])                        \
                              : ((l_ & (STEP)) ? (B)[l_ - (STEP)] : (A)[l_]);                       \
        out_;                                                                                       \
    })
#else
typedef int32_t indices __attribute__((vector_size(LANES * sizeof(int32_t))));
#define SHUFFLED(A, B, STEP, HIGH)                                                                  \
    ({                                                                                              \
        indices at_;                                                                                \
        for (int l_ = 0; l_ < LANES; l_++)                                                          \
            at_[l_] = (HIGH) ? ((l_ & (STEP)) ? LANES + l_ : l_ + (STEP))                           \
                             : ((l_ & (STEP)) ? LANES + l_ - (STEP) : l_);                          \
        __builtin_shuffle((A), (B), at_);                                                           \
    })
#endif

/* `to` [columns, ld_to] = the transpose of `from` [rows, ld]; both sizes are multiples of LANES. Squares of LANES
 * are turned in registers: exchange halves, then quarters, ... */
static __attribute__((noinline)) void transpose(int64_t rows, int64_t columns, const float *from, int64_t ld, float *to, int64_t ld_to) {
    for (int64_t i = 0; i < rows; i += LANES)
        for (int64_t j = 0; j < columns; j += LANES) {
            vec line[LANES];
#pragma GCC unroll 16
            for (int l = 0; l < LANES; l++) line[l] = load_vec_f32(from + (i + l) * ld + j);
#define EXCHANGE(STEP)                                                  \
    _Pragma("GCC unroll 16") for (int l = 0; l < LANES; l++) {          \
        if (l & (STEP)) continue;                                       \
        const vec one = line[l], other = line[(l + (STEP)) % LANES];    \
        line[l] = SHUFFLED(one, other, STEP, 0);                        \
        line[(l + (STEP)) % LANES] = SHUFFLED(one, other, STEP, 1);     \
    }
            EXCHANGE(1)
            EXCHANGE(2)
#if defined(__AVX2__)
            EXCHANGE(4)
#endif
#if defined(__AVX512F__)
            EXCHANGE(8)
#endif
#undef EXCHANGE
#pragma GCC unroll 16
            for (int l = 0; l < LANES; l++) store_vec_f32(to + (j + l) * ld_to + i, line[l]);
        }
}
