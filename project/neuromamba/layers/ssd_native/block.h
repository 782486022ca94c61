/* A whole residual block of the network in fp32, x + out_proj(mixer(in_proj(norm(x)))), in one call and one parallel
 * section each way: the steps of blockwise.py with their products, chunk by chunk. The tokens are walked in pieces of
 * some chunks, whose buffers stay in the caches of the cores. What is zero is not multiplied: what lies above a chunk's
 * diagonal, and what fills up a chunk that is not full.
 *
 * Needs N, P and D to be multiples of LANES, and four taps; blockwise.py does the rest with other functions. */

/* A piece, its first token, and whether it begins a walk rather than going on from the piece before. Keep in step with
 * _Piece in fused.py. */
typedef struct {
    Shape shape;
    int64_t first, begins;
} Piece;

/* Keep in step with _Block in fused.py. */
typedef struct {
    int64_t width;      /* D */
    int64_t ld;         /* between two rows of zx and of dzx */
    int64_t projected;  /* the forward pass has left its zx there */
    double eps;
    /* Small parameters, see passes.Weights, and the projections as `block_pack` leaves them. */
    const float *pre_norm, *conv_weight, *conv_bias, *dt_bias, *A, *D, *norm, *in_proj, *out_proj;
    /* x, out [L, D]; mask [L, D] of the dropout, which is scaled, or NULL. At the start of each piece: tails
     * [pieces, 3, W], the inputs of the convolution before it, and states [pieces, H, N, P] (NULL: not wanted). */
    const float *x, *mask;
    float *out, *tails, *states;
    /* What enters the mixer, [L, ld] or [longest piece, ld] if that is not `kept`. */
    float *zx;
    int64_t kept;
    /* Room for a piece: state [H, N, P]; normed, product [rows, D]; gated [rows, I]; xs [K, H, Q + N, P]; b, c [K, Q, N];
     * g [K, Q, Q]; y [K, H, Q, P]; added [K, H, N, P]; dt, a [K, H, Q]. */
    float *state, *normed, *product, *gated, *xs, *b, *c, *g, *y, *added, *dt;
    double *a;
    /* Of the backward pass: the projections packed for it; gradients of the output, and of the input; and of what has
     * the name without the d. dlast: see `scan_backward`. */
    const float *in_proj_back, *out_proj_back, *dout;
    float *dx, *dstate, *carry, *carried; /* [H, N, P]; [3, W] twice */
    float *dproduct, *dgated, *dy, *dxs, *db, *dc, *dadded, *dlast, *dzx, *dnormed;
    /* Sums over tokens, which are added to, and room to keep them a chunk apart. */
    float *dpre_norm, *dnorm, *dconv, *din_proj, *dout_proj, *room;
    double *dheads, *room_heads;
    /* Where the present piece stands: `at` sets them. */
    const float *tail;
} Block;

/* Arrays that vector registers are read from: none then lies across two lines of the cache. */
#define ALIGNED _Alignas(64) float

int64_t block_lanes(void) { return LANES; }

/* Numbers that `block_pack` writes for one of the two projections. */
int64_t block_packed_size(int64_t k, int64_t n) { return packed_size(k, n); }

/* A projection [outputs, inputs] for the forward pass, or for the backward pass. */
void block_pack(int64_t outputs, int64_t inputs, int64_t backward, const float *w, float *out) {
    if (backward)
        pack(0, outputs, inputs, w, out);
    else
        pack(1, inputs, outputs, w, out);
}

static inline int64_t rows_of(const Shape *s, int64_t k) { return s->stop[k] - s->start[k]; }

static inline vec between(vec x) { return at_most(at_least(x, -87.0f), 88.0f); } /* see exp_clamped */

/* All bits of the lanes j + lane <= i. */
static inline bitvec up_to(int64_t i, int64_t j) {
    bitvec lane;
    for (int l = 0; l < LANES; l++) lane[l] = (uint32_t)l;
    return (bitvec)(lane + (uint32_t)j <= (uint32_t)i);
}

/* Of one head and chunk, for j <= i: decay = exp(a_i - a_j), and W = g decay dt_j, + D on the diagonal; zeros beyond it
 * up to where a tile reads. */
static void head_weights(int64_t rows, int64_t q, const float *g, const float *step, const double *sum, float D,
                         float *decay, float *w) {
    for (int64_t i = 0; i < rows; i++) {
        const double here = sum[i];
        int64_t j = 0;
        for (; j <= i; j += LANES) {
            const bitvec kept = up_to(i, j);
            float difference[LANES];
#pragma omp simd
            for (int l = 0; l < LANES; l++) difference[l] = (float)(here - sum[j + l]);
            const vec e = (vec)((bitvec)exp_vec(between(load_vec_f32(difference))) & kept);
            if (decay) store_vec_f32(decay + i * q + j, e);
            /* g may hold anything above the diagonal. */
            const vec score = (vec)((bitvec)load_vec_f32(g + i * q + j) & kept);
            store_vec_f32(w + i * q + j, score * e * load_vec_f32(step + j));
        }
        w[i * q + i] += D;
        for (; j < q && j < i + TILE_ROWS; j += LANES) store_vec_f32(w + i * q + j, (vec){0});
    }
}

/* out [rows, width] = from times a number for each row. */
static inline void scale_rows(int64_t rows, int64_t width, const float *restrict from, const float *restrict by,
                              float *restrict out) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t n = 0; n < width; n++) out[i * width + n] = from[i * width + n] * by[i];
}

/* exp(a_i). */
static inline void decays_from_start(int64_t rows, const double *restrict sum, float *restrict out) {
    for (int64_t i = 0; i < rows; i++) out[i] = exp_clamped((float)sum[i]);
}

/* exp(a_last - a_i), and that times dt_i. */
static inline void decays_to_end(int64_t rows, double last, const double *restrict sum, const float *restrict step,
                                 float *restrict rest, float *restrict weight) {
    for (int64_t i = 0; i < rows; i++) {
        rest[i] = exp_clamped((float)(last - sum[i]));
        weight[i] = rest[i] * step[i];
    }
}

/* zx of a chunk. */
static void project_chunk(const Shape *s, const Block *o, int64_t k) {
    const int64_t D = o->width, R = 2 * s->heads * s->headdim + 2 * s->state + s->heads;
    for (int64_t t = s->start[k]; t < s->stop[k]; t++)
        norm_row_f32(D, (float)o->eps, o->x + t * D, o->pre_norm, o->normed + t * D);
    if (!o->projected)
        packed_product(rows_of(s, k), R, D, o->normed + s->start[k] * D, D, o->in_proj, o->zx + s->start[k] * o->ld,
                       o->ld);
}

/* From zx: what a chunk adds to the states, and its y without them. */
static void mix_chunk(const Shape *s, const Block *o, int64_t k) {
    const int64_t H = s->heads, P = s->headdim, N = s->state, Q = s->q, rows = rows_of(s, k);
    ALIGNED w[Q * Q], turned[N * Q], weighted[Q * N];
    ALIGNED rest[Q], weight[Q];
    prepare_chunk_f32(s, k, o->zx, o->ld, o->tail, o->conv_weight, o->conv_bias, o->dt_bias, o->A, o->xs, o->b, o->c,
                      o->dt, o->a);
    const float *b = o->b + k * Q * N;
    float *g = o->g + k * Q * Q;
    transpose(Q, N, b, N, turned, Q);
    product(LOWER_RESULT, rows, Q, N, o->c + k * Q * N, N, turned, Q, g, Q);
    for (int64_t h = 0; h < H; h++) {
        const int64_t kh = k * H + h;
        const float *step = o->dt + kh * Q, *x = o->xs + kh * (Q + N) * P;
        const double *sum = o->a + kh * Q;
        head_weights(rows, Q, g, step, sum, o->D[h], NULL, w);
        product(LOWER_LEFT, rows, P, rows, w, Q, x, P, o->y + kh * Q * P, P);
        decays_to_end(rows, sum[Q - 1], sum, step, rest, weight);
        scale_rows(rows, N, b, weight, weighted);
        product_of_transpose(DENSE, N, P, rows, weighted, N, x, P, o->added + kh * N * P, P);
    }
}

/* What the states before the chunk add to its y. */
static void add_states(const Shape *s, const Block *o, int64_t k, int64_t h, float *weighted) {
    const int64_t H = s->heads, P = s->headdim, N = s->state, Q = s->q, kh = k * H + h, rows = rows_of(s, k);
    ALIGNED from_start[Q];
    decays_from_start(rows, o->a + kh * Q, from_start);
    scale_rows(rows, N, o->c + k * Q * N, from_start, weighted);
    product_added(DENSE, rows, P, N, weighted, N, o->xs + (kh * (Q + N) + Q) * P, P, o->y + kh * Q * P, P);
}

static void finish_chunk(const Shape *s, const Block *o, int64_t k) {
    const int64_t D = o->width, I = s->heads * s->headdim, rows = rows_of(s, k), first = s->start[k];
    ALIGNED weighted[s->q * s->state];
    for (int64_t h = 0; h < s->heads; h++) add_states(s, o, k, h, weighted);
    gate_chunk_f32(s, k, (float)o->eps, o->y, o->zx, o->ld, o->norm, o->gated, I);
    packed_product(rows, D, I, o->gated + first * I, I, o->out_proj, o->product + first * D, D);
    const float *restrict x = o->x + first * D, *restrict y = o->product + first * D;
    float *restrict out = o->out + first * D;
    if (o->mask) {
        const float *restrict mask = o->mask + first * D;
        for (int64_t i = 0; i < rows * D; i++) out[i] = x[i] + mask[i] * y[i];
    } else {
        for (int64_t i = 0; i < rows * D; i++) out[i] = x[i] + y[i];
    }
}

/* The block with its pointers at a piece. */
static Block at(const Block *whole, const Piece *piece, int64_t number) {
    Block o = *whole;
    const int64_t D = o.width, first = piece->first, H = piece->shape.heads, P = piece->shape.headdim;
    o.x += first * D;
    if (o.mask) o.mask += first * D;
    if (o.out) o.out += first * D;
    if (o.dout) o.dout += first * D, o.dx += first * D;
    if (o.kept) o.zx += first * o.ld;
    o.tail = o.tails + number * 3 * (H * P + 2 * piece->shape.state);
    return o;
}

/* The inputs of the convolution before a piece, which the piece before it still holds. */
static void note_tail(const Block *whole, const Piece *pieces, int64_t number) {
    const Shape *s = &pieces[number].shape;
    const int64_t I = s->heads * s->headdim, W = I + 2 * s->state;
    float *to = whole->tails + number * 3 * W;
    if (pieces[number].begins) {
        memset(to, 0, (size_t)(3 * W) * sizeof *to);
        return;
    }
    const Piece *before = pieces + number - 1;
    const float *rows = whole->zx + ((whole->kept ? before->first : 0) + before->shape.rows - 3) * whole->ld + I;
    for (int64_t i = 0; i < 3; i++) memcpy(to + i * W, rows + i * whole->ld, (size_t)W * sizeof *to);
}

/* out of all pieces. */
void block_forward(int64_t count, const Piece *pieces, const Block *whole) {
    const int64_t size = pieces->shape.heads * pieces->shape.state * pieces->shape.headdim;
#pragma omp parallel num_threads(pieces->shape.threads)
    {
        const uint64_t before = flush_denormals();
        for (int64_t number = 0; number < count; number++) {
            const Piece *piece = pieces + number;
            const Shape *s = &piece->shape;
            const Block here = at(whole, piece, number), *o = &here;
#pragma omp single
            {
                note_tail(whole, pieces, number);
                if (piece->begins) memset(o->state, 0, (size_t)size * sizeof(float));
                if (o->states) memcpy(o->states + number * size, o->state, (size_t)size * sizeof(float));
            }
#pragma omp for schedule(static)
            for (int64_t k = 0; k < s->chunks; k++) project_chunk(s, o, k);
#pragma omp for schedule(static)
            for (int64_t k = 0; k < s->chunks; k++) mix_chunk(s, o, k);
#pragma omp for schedule(static)
            for (int64_t hn = 0; hn < s->heads * s->state; hn++) scan_row_f32(s, hn, o->added, o->a, o->state, o->xs);
#pragma omp for schedule(static)
            for (int64_t k = 0; k < s->chunks; k++) finish_chunk(s, o, k);
        }
        restore(before);
    }
}

/* From dout to dy, dz and what the chunk's outputs ask of the states; `gated` again. */
static void gate_back_chunk(const Shape *s, const Block *o, int64_t k) {
    const int64_t D = o->width, H = s->heads, P = s->headdim, N = s->state, Q = s->q, I = H * P;
    const int64_t rows = rows_of(s, k), first = s->start[k];
    ALIGNED weighted[H * Q * N];
    for (int64_t h = 0; h < H; h++) add_states(s, o, k, h, weighted + h * Q * N);
    if (o->mask)
        for (int64_t i = first * D; i < (first + rows) * D; i++) o->dproduct[i] = o->dout[i] * o->mask[i];
    packed_product(rows, I, D, (o->mask ? o->dproduct : o->dout) + first * D, D, o->out_proj_back,
                   o->dgated + first * I, I);
    gate_backward_chunk_f32(s, k, (float)o->eps, o->y, o->zx, o->ld, o->norm, o->dgated, I, o->gated, o->dy, o->dzx,
                            o->ld, o->room);
    for (int64_t h = 0; h < H; h++) {
        const int64_t kh = k * H + h;
        product_of_transpose(DENSE, N, P, rows, weighted + h * Q * N, N, o->dy + kh * Q * P, P,
                             o->dxs + (kh * (Q + N) + Q) * P, P);
    }
}

/* The gradients that reach one head's decays and steps through W and the states, and what it adds to those of g, b and
 * c. scores [Q, Q] = dW before the decay; asked = d(C exp a), given = d(B weight) [Q, N]. */
static void head_backward(const Shape *s, const Block *o, int64_t k, int64_t h, const float *decay,
                          const float *scores, const float *asked, const float *given, float *dg) {
    const int64_t H = s->heads, N = s->state, Q = s->q, kh = k * H + h, rows = rows_of(s, k);
    const float *step = o->dt + kh * Q, *g = o->g + k * Q * Q, *dlast = o->dlast + kh * N;
    const double *sum = o->a + kh * Q;
    double da[Q], last = 0.0, skip = 0.0;
    ALIGNED ddt[Q], column[Q], from_start[Q], rest[Q], weight[Q];
    memset(da, 0, sizeof da);
    memset(column, 0, sizeof column);
    for (int64_t n = 0; n < N; n++) last += (double)dlast[n];
    for (int64_t i = 0; i < rows; i++) {
        vec row = {0};
        for (int64_t j = 0; j <= i; j += LANES) {
            const bitvec kept = up_to(i, j);
            const vec dt = load_vec_f32(step + j);
            const vec d = (vec)((bitvec)load_vec_f32(scores + i * Q + j) & kept) * load_vec_f32(decay + i * Q + j);
            const vec whole = d * (vec)((bitvec)load_vec_f32(g + i * Q + j) & kept);
            store_vec_f32(dg + i * Q + j, load_vec_f32(dg + i * Q + j) + d * dt);
            store_vec_f32(column + j, load_vec_f32(column + j) + whole);
            row += whole * dt;
        }
        skip += (double)scores[i * Q + i];
        da[i] = (double)sum_of(row);
    }
    for (int64_t j = 0; j < Q; j++) {
        da[j] -= (double)(column[j] * step[j]);
        ddt[j] = column[j];
    }
    decays_from_start(rows, sum, from_start);
    decays_to_end(rows, sum[Q - 1], sum, step, rest, weight);
    for (int64_t i = 0; i < rows; i++) {
        const int64_t at = (k * Q + i) * N;
        vec dot_b = {0}, dot_c = {0};
        for (int64_t n = 0; n < N; n += LANES) {
            const vec dc = load_vec_f32(asked + i * N + n) * from_start[i], db = load_vec_f32(given + i * N + n);
            store_vec_f32(o->dc + at + n, load_vec_f32(o->dc + at + n) + dc);
            store_vec_f32(o->db + at + n, load_vec_f32(o->db + at + n) + db * weight[i]);
            dot_c += dc * load_vec_f32(o->c + at + n);
            dot_b += db * load_vec_f32(o->b + at + n);
        }
        const float through_b = sum_of(dot_b);
        ddt[i] += rest[i] * through_b;
        da[i] += (double)sum_of(dot_c) - (double)(weight[i] * through_b);
        last += (double)(weight[i] * through_b);
    }
    da[Q - 1] += last;
    o->room_heads[kh * 3 + 1] = skip;
    steps_backward_f32(s, k, h, da, ddt, step, o->A, o->zx, o->ld, o->dt_bias, o->dzx, o->ld, o->room_heads);
}

/* From dy and the gradients of the states to those of x, B, C and dt. */
static void mix_back_chunk(const Shape *s, const Block *o, int64_t k) {
    const int64_t H = s->heads, P = s->headdim, N = s->state, Q = s->q, rows = rows_of(s, k);
    ALIGNED w[Q * Q], decay[Q * Q], dg[Q * Q], turned[P * Q], turned_n[P * N], asked[Q * N], given[Q * N];
    ALIGNED rest[Q], weight[Q];
    const float *b = o->b + k * Q * N, *c = o->c + k * Q * N, *g = o->g + k * Q * Q;
    memset(dg, 0, (size_t)(Q * Q) * sizeof *dg);
    memset(o->db + k * Q * N, 0, (size_t)(Q * N) * sizeof(float));
    memset(o->dc + k * Q * N, 0, (size_t)(Q * N) * sizeof(float));
    for (int64_t h = 0; h < H; h++) {
        const int64_t kh = k * H + h, at = kh * (Q + N) * P;
        const float *step = o->dt + kh * Q, *x = o->xs + at, *dy = o->dy + kh * Q * P;
        const float *dadded = o->dadded + kh * N * P;
        const double *sum = o->a + kh * Q;
        head_weights(rows, Q, g, step, sum, o->D[h], decay, w);
        product_of_transpose(UPPER_LEFT, rows, P, rows, w, Q, dy, P, o->dxs + at, P);
        decays_to_end(rows, sum[Q - 1], sum, step, rest, weight);
        scale_rows(rows, N, b, weight, given);
        product_added(DENSE, rows, P, N, given, N, dadded, P, o->dxs + at, P);
        transpose(Q, P, x, P, turned, Q);
        product(LOWER_RESULT, rows, Q, P, dy, P, turned, Q, w, Q);
        transpose(N, P, x + Q * P, P, turned_n, N);
        product(DENSE, rows, N, P, dy, P, turned_n, N, asked, N);
        transpose(N, P, dadded, P, turned_n, N);
        product(DENSE, rows, N, P, x, P, turned_n, N, given, N);
        head_backward(s, o, k, h, decay, w, asked, given, dg);
    }
    product_added(LOWER_LEFT, rows, N, rows, dg, Q, b, N, o->dc + k * Q * N, N);
    transpose_product_added(UPPER_LEFT, rows, N, rows, dg, Q, c, N, o->db + k * Q * N, N);
}

/* To dzx, and through the in-projection to dx. */
static void project_back_chunk(const Shape *s, const Block *o, int64_t k) {
    const int64_t D = o->width, R = 2 * s->heads * s->headdim + 2 * s->state + s->heads, first = s->start[k];
    float *dconv = o->room + s->chunks * D;
    convolution_backward_chunk_f32(s, k, o->dxs, NULL, o->db, NULL, o->dc, NULL, o->zx, o->ld, o->tail,
                                   o->conv_weight, o->conv_bias, o->carried, o->carry, o->dzx, o->ld, dconv);
    packed_product(rows_of(s, k), D, R, o->dzx + first * o->ld, o->ld, o->in_proj_back, o->dnormed + first * D, D);
    norm_backward_rows_f32(first, s->stop[k], D, (float)o->eps, o->x, D, o->pre_norm, o->dnormed, o->dout, D, o->dx,
                           D, o->room + k * D);
}

/* The gradients of the projections, in stripes of their rows. */
enum { STRIPE = 8 * TILE_ROWS };

/* Rows [from, to) of C [m, n] += A^T B, A [k, m] and B [k, n]; from is a multiple of STRIPE, and rows of A can be read up
 * to a multiple of LANES. Pieces along k stay in the cache, B's for all stripes; those of A are copied, since the few
 * numbers that a stripe has of each row would push each other out of it. */
static void add_outer(int64_t from, int64_t to, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                      float *c) {
    enum { PIECE = 128 };
    ALIGNED left[PIECE * STRIPE];
    for (int64_t at = 0; at < k; at += PIECE) {
        const int64_t rows = smaller(k - at, PIECE);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < to - from; j += LANES)
                store_vec_f32(left + i * STRIPE + j, load_vec_f32(a + (at + i) * lda + from + j));
        transpose_product_added(DENSE, to - from, n, rows, left, STRIPE, b + at * n, n, c + from * n, n);
    }
}

static inline int64_t stripes(int64_t rows) { return (rows + STRIPE - 1) / STRIPE; }

static void projections_back(const Shape *s, const Block *o, int64_t stripe) {
    const int64_t D = o->width, I = s->heads * s->headdim, R = 2 * I + 2 * s->state + s->heads;
    const int64_t of_in = stripes(R);
    if (stripe < of_in) {
        add_outer(stripe * STRIPE, smaller((stripe + 1) * STRIPE, R), D, s->rows, o->dzx, o->ld, o->normed,
                  o->din_proj);
    } else {
        const int64_t from = (stripe - of_in) * STRIPE;
        add_outer(from, smaller(from + STRIPE, D), I, s->rows, o->mask ? o->dproduct : o->dout, D, o->gated,
                  o->dout_proj);
    }
}

/* dx of all pieces, from the last to the first, and the gradients of the weights, which are added to (unless din_proj is
 * NULL: those of the small ones only). */
void block_backward(int64_t count, const Piece *pieces, const Block *whole) {
    const int64_t H = pieces->shape.heads, I = H * pieces->shape.headdim, W = I + 2 * pieces->shape.state;
    const size_t size = (size_t)(I * pieces->shape.state) * sizeof(float), carry = (size_t)(3 * W) * sizeof(float);
    const int64_t all = stripes(W + I + H) + stripes(whole->width);
#pragma omp parallel num_threads(pieces->shape.threads)
    {
        const uint64_t before = flush_denormals();
        for (int64_t number = count - 1; number >= 0; number--) {
            const Shape *s = &pieces[number].shape;
            const Block here = at(whole, pieces + number, number), *o = &here;
#pragma omp single
            {
                if (number == count - 1 || pieces[number + 1].begins) {
                    memset(o->dstate, 0, size);
                    memset(o->carry, 0, carry);
                }
                memcpy(o->carried, o->carry, carry);
                memcpy(o->state, o->states + number * (int64_t)(size / sizeof(float)), size);
            }
#pragma omp for schedule(static)
            for (int64_t k = 0; k < s->chunks; k++) project_chunk(s, o, k);
#pragma omp for schedule(static)
            for (int64_t k = 0; k < s->chunks; k++) mix_chunk(s, o, k);
#pragma omp for schedule(static)
            for (int64_t hn = 0; hn < H * s->state; hn++) scan_row_f32(s, hn, o->added, o->a, o->state, o->xs);
#pragma omp for schedule(static)
            for (int64_t k = 0; k < s->chunks; k++) gate_back_chunk(s, o, k);
#pragma omp single
            collect_f32(s->chunks, I, o->room, I, o->dnorm);
#pragma omp for schedule(static)
            for (int64_t hn = 0; hn < H * s->state; hn++)
                scan_backward_row_f32(s, hn, o->dxs, o->xs, o->a, o->dstate, o->dadded, o->dlast);
#pragma omp for schedule(static)
            for (int64_t k = 0; k < s->chunks; k++) mix_back_chunk(s, o, k);
#pragma omp for schedule(static)
            for (int64_t k = 0; k < s->chunks; k++) project_back_chunk(s, o, k);
#pragma omp single
            {
                collect_f32(s->chunks, o->width, o->room, o->width, o->dpre_norm);
                collect_f32(s->chunks, 5 * W, o->room + s->chunks * o->width, 5 * W, o->dconv);
                collect_heads_f32(s, o->room_heads, o->dheads);
            }
            if (o->din_proj) {
#pragma omp for schedule(static)
                for (int64_t i = 0; i < all; i++) projections_back(s, o, i);
            }
        }
        restore(before);
    }
}
