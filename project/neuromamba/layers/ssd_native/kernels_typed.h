/* Included by kernels.c once for each operand type OP. Letters as in blockwise.py: K chunks of Q tokens,
 * H heads of P, N state size, I = H P, channels of the convolution W = I + 2N. A leading dimension (ld) is
 * the distance between two rows. */

/* A stretch of channels in a buffer by chunks: row i of chunk k stands at
 * at + (k * chunk_rows + i) * ld. */
typedef struct {
    OP *at;
    int64_t ld, chunk_rows;
} NAME(Place);

/* Where channels go (or their gradients come from): part h < H is head h of x [K, H, height, P], H is
 * B [K, Q, N], H + 1 is C. */
static inline NAME(Place) NAME(place)(const Shape *s, int64_t part, OP *x, int64_t height, OP *b,
                                      OP *c) {
    const int64_t H = s->heads, P = s->headdim;
    NAME(Place) of_x = {x + part * height * P, P, H * height};
    NAME(Place) of_bc = {part == H ? b : c, s->state, s->q};
    return part < H ? of_x : of_bc;
}

static inline OP *NAME(row)(NAME(Place) place, int64_t k, int64_t i) {
    return place.at + (k * place.chunk_rows + i) * place.ld;
}

/* The place of channels further on; nothing stays nothing. */
static inline NAME(Place) NAME(after)(NAME(Place) place, int64_t channels) {
    if (place.at) place.at += channels;
    return place;
}

/* LANES values of row i of chunk k, and those of a second summand unless that is nothing. */
static inline vec NAME(both_vec)(NAME(Place) one, NAME(Place) rest, int64_t k, int64_t i) {
    const vec first = LOAD_VEC(NAME(row)(one, k, i));
    return rest.at ? first + LOAD_VEC(NAME(row)(rest, k, i)) : first;
}

/* Input t of the convolution; those before the block stand in `tail`. */
static inline const OP *NAME(input)(const OP *xbc, int64_t ld, const OP *tail, int64_t taps,
                                    int64_t width, int64_t t) {
    return t < 0 ? tail + (t + taps - 1) * width : xbc + t * ld;
}

/* Ask for rows [from, to) of a buffer. Passes that walk down columns find them in the cache then; left to
 * themselves they would wait for memory at every step. */
static inline void NAME(fetch)(const OP *rows, int64_t ld, int64_t from, int64_t to, int64_t width) {
    for (int64_t t = from; t < to; t++)
        for (int64_t c = 0; c < width; c += 64 / (int64_t)sizeof(OP))
            __builtin_prefetch(rows + t * ld + c, 0, 2);
}

/* Root-mean-square norm of rows: out = x / sqrt(mean x^2 + eps) * weight. */
static inline void NAME(norm_row)(int64_t width, float eps, const float *restrict from,
                                  const float *restrict weight, OP *restrict to) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < width; c++) sum += from[c] * from[c];
    float scale = 1.0f / sqrtf(sum / (float)width + eps);
#pragma omp simd
    for (int64_t c = 0; c < width; c++) to[c] = STORE(from[c] * scale * weight[c]);
}

void NAME(norm)(int64_t rows, int64_t width, float eps, int64_t threads, const float *x, int64_t ld_x,
                const float *weight, OP *out) {
    (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t t = 0; t < rows; t++) NAME(norm_row)(width, eps, x + t * ld_x, weight, out + t * width);
}

/* total[c] += sum over k of partial[k][c], in this order whatever the number of threads. */
static inline void NAME(collect)(int64_t chunks, int64_t width, const float *partial, int64_t ld,
                                 float *restrict total) {
    for (int64_t k = 0; k < chunks; k++)
        for (int64_t c = 0; c < width; c++) total[c] += partial[k * ld + c];
}

/* dx = residual + gradient of the norm, for rows [from, to); d weight is written to dweight [width]. */
static inline void NAME(norm_backward_rows)(int64_t from_row, int64_t to_row, int64_t width, float eps,
                                            const float *x, int64_t ld_x, const float *restrict weight,
                                            const OP *dout, const float *residual, int64_t ld_residual,
                                            float *dx, int64_t ld_dx, float *restrict dweight) {
    memset(dweight, 0, (size_t)width * sizeof *dweight);
    for (int64_t t = from_row; t < to_row; t++) {
        const float *restrict from = x + t * ld_x;
        const float *restrict skip = residual + t * ld_residual;
        const OP *restrict d = dout + t * width;
        float *restrict to = dx + t * ld_dx;
        float sum = 0.0f, dot = 0.0f;
#pragma omp simd reduction(+ : sum, dot)
        for (int64_t c = 0; c < width; c++) {
            sum += from[c] * from[c];
            dot += LOAD(d[c]) * weight[c] * from[c];
        }
        float scale = 1.0f / sqrtf(sum / (float)width + eps);
        float shrink = scale * scale * scale * dot / (float)width;
#pragma omp simd
        for (int64_t c = 0; c < width; c++) {
            float g = LOAD(d[c]);
            dweight[c] += g * from[c] * scale;
            to[c] = skip[c] + g * weight[c] * scale - from[c] * shrink;
        }
    }
}

/* The same for all rows; d weight is added to dweight_total. partial: room for [ceil(rows / q), width]. */
void NAME(norm_backward)(int64_t rows, int64_t width, float eps, int64_t q, int64_t threads,
                         const float *x, int64_t ld_x, const float *weight, const OP *dout,
                         const float *residual, int64_t ld_residual, float *dx, int64_t ld_dx,
                         float *partial, float *dweight_total) {
    (void)threads;
    const int64_t chunks = (rows + q - 1) / q;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t k = 0; k < chunks; k++)
        NAME(norm_backward_rows)(k * q, (k + 1) * q < rows ? (k + 1) * q : rows, width, eps, x, ld_x,
                                 weight, dout, residual, ld_residual, dx, ld_dx, partial + k * width);
    NAME(collect)(chunks, width, partial, width, dweight_total);
}

/* out = x + y, y of the operand type. */
void NAME(add)(int64_t rows, int64_t width, int64_t threads, const float *x, int64_t ld_x, const OP *y,
               float *out, int64_t ld_out) {
    (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t t = 0; t < rows; t++) {
        const float *restrict from = x + t * ld_x;
        const OP *restrict other = y + t * width;
        float *restrict to = out + t * ld_out;
#pragma omp simd
        for (int64_t c = 0; c < width; c++) to[c] = from[c] + LOAD(other[c]);
    }
}

/* silu(convolution) of LANES channels from `c` on, for tokens [from, to) of the block: four taps. */
static inline void NAME(convolve_vec)(const float *weight, const float *bias_of, int64_t width, int64_t c,
                                      const OP *xbc, int64_t ld, const OP *tail, int64_t from,
                                      int64_t to, OP *out, int64_t ld_out) {
    const vec w0 = load_vec_f32(weight + c), w1 = load_vec_f32(weight + width + c);
    const vec w2 = load_vec_f32(weight + 2 * width + c), w3 = load_vec_f32(weight + 3 * width + c);
    const vec bias = load_vec_f32(bias_of + c);
    vec x0 = LOAD_VEC(NAME(input)(xbc, ld, tail, 4, width, from - 3) + c);
    vec x1 = LOAD_VEC(NAME(input)(xbc, ld, tail, 4, width, from - 2) + c);
    vec x2 = LOAD_VEC(NAME(input)(xbc, ld, tail, 4, width, from - 1) + c);
    for (int64_t t = from; t < to; t++) {
        const vec x3 = LOAD_VEC(xbc + t * ld + c);
        const vec v = bias + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3;
        STORE_VEC(out + (t - from) * ld_out, v * sigmoid_vec(v));
        x0 = x1, x1 = x2, x2 = x3;
    }
}

/* The same for one channel and any filter. */
static inline void NAME(convolve_one)(const float *weight, const float *bias, int64_t taps,
                                      int64_t width, int64_t c, const OP *xbc, int64_t ld,
                                      const OP *tail, int64_t from, int64_t to, OP *out,
                                      int64_t ld_out) {
    for (int64_t t = from; t < to; t++) {
        float v = bias[c];
        for (int64_t j = 0; j < taps; j++)
            v += weight[j * width + c] *
                 LOAD(NAME(input)(xbc, ld, tail, taps, width, t - (taps - 1) + j)[c]);
        out[(t - from) * ld_out] = STORE(v * sigmoid(v));
    }
}

/* Convolution, SiLU, step sizes and summed log decays of a block.
 *
 * zx [rows, ld]: z (I), x (I), B (N), C (N), dt (H). Into xs [K, H, Q + N, P], its first Q rows of each
 * head; b, c [K, Q, N]; dt, a [K, H, Q]. What fills up a chunk becomes 0, with dt = 0: it neither
 * decays the state nor adds to it. `tail` is zero where the block holds whole sequences. */
static inline void NAME(prepare_chunk)(const Shape *s, int64_t k, const OP *zx, int64_t ld, const OP
            *tail, const float *conv_weight, const float *conv_bias, const float *dt_bias, const float
            *A, OP *xs, OP *b, OP *c, float *dt, double *a) {
    const int64_t H = s->heads, P = s->headdim, N = s->state, Q = s->q, I = H * P, W = I + 2 * N;
    /* Rows count from the start of the sequence. */
    const OP *own = zx + s->base[k] * ld;
    const int64_t from = s->start[k] - s->base[k], to = s->stop[k] - s->base[k];
    NAME(fetch)(own + I, ld, from, to, W);
    for (int64_t part = 0; part < H + 2; part++) {
        const int64_t first = part < H ? part * P : I + (part - H) * N, size = part < H ? P : N;
        const NAME(Place) place = NAME(place)(s, part, xs, Q + N, b, c);
        OP *out = NAME(row)(place, k, 0);
        int64_t done = 0;
        for (; s->taps == 4 && done + LANES <= size; done += LANES)
            NAME(convolve_vec)(conv_weight, conv_bias, W, first + done, own + I, ld, tail, from, to,
                               out + done, place.ld);
        for (; done < size; done++)
            NAME(convolve_one)(conv_weight, conv_bias, s->taps, W, first + done, own + I, ld, tail,
                               from, to, out + done, place.ld);
        memset(out + (to - from) * place.ld, 0, (size_t)((Q - (to - from)) * size) * sizeof(OP));
    }
    for (int64_t h = 0; h < H; h++) {
        float *restrict step = dt + (k * H + h) * Q;
        double *restrict sums = a + (k * H + h) * Q, sum = 0.0;
        for (int64_t t = from; t < to; t++) step[t - from] = LOAD(own[t * ld + I + W + h]) + dt_bias[h];
#pragma omp simd
        for (int64_t i = 0; i < to - from; i++) step[i] = softplus(step[i]);
        for (int64_t i = to - from; i < Q; i++) step[i] = 0.0f;
        for (int64_t i = 0; i < Q; i++) sums[i] = sum += (double)step[i] * (double)A[h];
    }
}

void NAME(prepare)(const Shape *s, const OP *zx, int64_t ld, const OP *tail,
                   const float *conv_weight, const float *conv_bias, const float *dt_bias,
                   const float *A, OP *xs, OP *b, OP *c, float *dt, double *a) {
#pragma omp parallel for schedule(static) num_threads(s->threads)
    for (int64_t k = 0; k < s->chunks; k++)
        NAME(prepare_chunk)(s, k, zx, ld, tail, conv_weight, conv_bias, dt_bias, A, xs, b, c, dt, a);
}

/* The matrices that multiply x and the state.
 *
 * From g = C B^T [K, Q, Q]:  wc [K, H, Q, Q + N] =
 * (g exp(a_i - a_j) dt_j + D for j = i, 0 above | C exp(a_i)), bw [K, H, Q, N] = B exp(a_last - a_j) dt_j. */
void NAME(weights)(const Shape *s, const OP *g, const OP *b, const OP *c, const float *dt,
                   const double *a, const float *D, OP *wc, OP *bw) {
    const int64_t H = s->heads, N = s->state, Q = s->q;
#pragma omp parallel for schedule(static) num_threads(s->threads)
    for (int64_t kh = 0; kh < s->chunks * H; kh++) {
        const int64_t k = kh / H;
        const float *restrict step = dt + kh * Q;
        const double *restrict sum = a + kh * Q;
        for (int64_t i = 0; i < Q; i++) {
            const OP *restrict from = g + (k * Q + i) * Q;
            OP *restrict to = wc + (kh * Q + i) * (Q + N);
            const double here = sum[i];
#pragma omp simd
            for (int64_t j = 0; j <= i; j++)
                to[j] = STORE(LOAD(from[j]) * exp_clamped((float)(here - sum[j])) * step[j]);
            to[i] = STORE(LOAD(from[i]) * step[i] + D[kh % H]);
            for (int64_t j = i + 1; j < Q; j++) to[j] = STORE(0.0f);
            const float decay = exp_clamped((float)here);
            const float weight = exp_clamped((float)(sum[Q - 1] - here)) * step[i];
            const OP *restrict from_b = b + (k * Q + i) * N, *restrict from_c = c + (k * Q + i) * N;
            OP *restrict to_b = bw + (kh * Q + i) * N;
            for (int64_t n = 0; n < N; n++) to[Q + n] = STORE(LOAD(from_c[n]) * decay);
            for (int64_t n = 0; n < N; n++) to_b[n] = STORE(LOAD(from_b[n]) * weight);
        }
    }
}

/* States before each chunk into the last N rows of xs; `state` [H, N, P] goes from the block's start
 * to its end. added [K, H, N, P] is what each chunk adds. */
static inline void NAME(scan_row)(const Shape *s, int64_t hn, const OP *added, const double *a, float
            *state, OP *xs) {
    const int64_t H = s->heads, P = s->headdim, N = s->state, Q = s->q;
    const int64_t h = hn / N, n = hn % N;
    float *restrict carry = state + hn * P;
    for (int64_t k = 0; k < s->chunks; k++) {
        const int64_t kh = k * H + h;
        if (begins(s, k)) memset(carry, 0, (size_t)P * sizeof *carry);
        const float decay = exp_clamped((float)a[kh * Q + Q - 1]);
        const OP *restrict plus = added + (kh * N + n) * P;
        OP *restrict to = xs + (kh * (Q + N) + Q + n) * P;
        for (int64_t p = 0; p < P; p++) {
            to[p] = STORE(carry[p]);
            carry[p] = decay * carry[p] + LOAD(plus[p]);
        }
    }
}

void NAME(scan)(const Shape *s, const OP *added, const double *a, float *state, OP *xs) {
    const int64_t H = s->heads, N = s->state;
#pragma omp parallel for schedule(static) num_threads(s->threads)
    for (int64_t hn = 0; hn < H * N; hn++)
        NAME(scan_row)(s, hn, added, a, state, xs);
}

/* out [rows, ld_out] = RMSNorm(y silu(z)); y [K, H, Q, P]. */
static inline void NAME(gate_chunk)(const Shape *s, int64_t k, float eps, const OP *y, const OP *zx,
                                    int64_t ld, const float *restrict weight, OP *out, int64_t ld_out) {
    const int64_t H = s->heads, P = s->headdim, Q = s->q, I = H * P;
    for (int64_t t = s->start[k]; t < s->stop[k]; t++) {
        float v[I];
        float sum = 0.0f;
        vec sums = {0};
        for (int64_t h = 0; h < H; h++) {
            const OP *restrict from = y + ((k * H + h) * Q + t - s->start[k]) * P;
            const OP *restrict z = zx + t * ld + h * P;
            float *restrict to = v + h * P;
            int64_t p = 0;
            for (; p + LANES <= P; p += LANES) {
                const vec gate = LOAD_VEC(z + p), value = LOAD_VEC(from + p) * gate * sigmoid_vec(gate);
                store_vec_f32(to + p, value);
                sums += value * value;
            }
            for (; p < P; p++) {
                float gate = LOAD(z[p]);
                float value = LOAD(from[p]) * gate * sigmoid(gate);
                to[p] = value;
                sum += value * value;
            }
        }
        float scale = 1.0f / sqrtf((sum + sum_of(sums)) / (float)I + eps);
        OP *restrict to = out + t * ld_out;
#pragma omp simd
        for (int64_t c = 0; c < I; c++) to[c] = STORE(v[c] * scale * weight[c]);
    }
}

void NAME(gate)(const Shape *s, float eps, const OP *y, const OP *zx, int64_t ld,
                const float *restrict weight, OP *out, int64_t ld_out) {
#pragma omp parallel for schedule(static) num_threads(s->threads)
    for (int64_t k = 0; k < s->chunks; k++)
        NAME(gate_chunk)(s, k, eps, y, zx, ld, weight, out, ld_out);
}

/* Gradient of `gate`: dy [K, H, Q, P], the z columns of dzx, d weight added to dweight_total; and once more
 * the output itself into `out` (unless NULL). partial: room for [K, I]. */
static inline void NAME(gate_backward_chunk)(const Shape *s, int64_t k, float eps, const OP *y, const OP
            *zx, int64_t ld, const float *restrict weight, const OP *dout, int64_t ld_dout, OP *out, OP
            *dy, OP *dzx, int64_t ld_dzx, float *partial) {
    const int64_t H = s->heads, P = s->headdim, Q = s->q, I = H * P;
    float v[I], sig[I], d[I];
    float *restrict dweight = partial + k * I;
    memset(dweight, 0, (size_t)I * sizeof *dweight);
    for (int64_t i = 0; i < Q; i++) {
        const int64_t t = s->start[k] + i;
        if (t >= s->stop[k]) {
            for (int64_t h = 0; h < H; h++)
                memset(dy + ((k * H + h) * Q + i) * P, 0, (size_t)P * sizeof(OP));
            continue;
        }
        const OP *restrict z = zx + t * ld;
        const OP *restrict grad = dout + t * ld_dout;
        float sum = 0.0f, dot = 0.0f;
        vec sums = {0}, dots = {0};
        for (int64_t h = 0; h < H; h++) {
            const OP *restrict from = y + ((k * H + h) * Q + i) * P;
            const int64_t first = h * P;
            int64_t p = 0;
            for (; p + LANES <= P; p += LANES) {
                const vec gate = LOAD_VEC(z + first + p), s1 = sigmoid_vec(gate);
                const vec value = LOAD_VEC(from + p) * gate * s1;
                const vec g = LOAD_VEC(grad + first + p) * load_vec_f32(weight + first + p);
                store_vec_f32(v + first + p, value);
                store_vec_f32(sig + first + p, s1);
                store_vec_f32(d + first + p, g);
                sums += value * value;
                dots += value * g;
            }
            for (; p < P; p++) {
                float gate = LOAD(z[first + p]);
                float s1 = sigmoid(gate);
                float value = LOAD(from[p]) * gate * s1;
                float g = LOAD(grad[first + p]) * weight[first + p];
                v[first + p] = value;
                sig[first + p] = s1;
                d[first + p] = g;
                sum += value * value;
                dot += value * g;
            }
        }
        float scale = 1.0f / sqrtf((sum + sum_of(sums)) / (float)I + eps);
        float shrink = scale * scale * scale * (dot + sum_of(dots)) / (float)I;
#pragma omp simd
        for (int64_t c = 0; c < I; c++) {
            dweight[c] += LOAD(grad[c]) * v[c] * scale;
            d[c] = d[c] * scale - v[c] * shrink;
        }
        if (out) {
            OP *restrict to = out + t * I;
#pragma omp simd
            for (int64_t c = 0; c < I; c++) to[c] = STORE(v[c] * scale * weight[c]);
        }
        OP *restrict dz = dzx + t * ld_dzx;
        for (int64_t h = 0; h < H; h++) {
            const OP *restrict from = y + ((k * H + h) * Q + i) * P;
            OP *restrict to = dy + ((k * H + h) * Q + i) * P;
            const int64_t first = h * P;
            int64_t p = 0;
            for (; p + LANES <= P; p += LANES) {
                const vec gate = LOAD_VEC(z + first + p), s1 = load_vec_f32(sig + first + p);
                const vec g = load_vec_f32(d + first + p) * s1;
                STORE_VEC(to + p, g * gate);
                STORE_VEC(dz + first + p, g * LOAD_VEC(from + p) * (1.0f + gate * (1.0f - s1)));
            }
            for (; p < P; p++) {
                float gate = LOAD(z[first + p]), s1 = sig[first + p], g = d[first + p] * s1;
                to[p] = STORE(g * gate);
                dz[first + p] = STORE(g * LOAD(from[p]) * (1.0f + gate * (1.0f - s1)));
            }
        }
    }
}

void NAME(gate_backward)(const Shape *s, float eps, const OP *y, const OP *zx, int64_t ld,
                         const float *restrict weight, const OP *dout, int64_t ld_dout, OP *out,
                         OP *dy, OP *dzx, int64_t ld_dzx, float *partial, float *dweight_total) {
    const int64_t I = s->heads * s->headdim;
#pragma omp parallel for schedule(static) num_threads(s->threads)
    for (int64_t k = 0; k < s->chunks; k++)
        NAME(gate_backward_chunk)(s, k, eps, y, zx, ld, weight, dout, ld_dout, out, dy, dzx, ld_dzx,
                                  partial);
    NAME(collect)(s->chunks, I, partial, I, dweight_total);
}

/* Gradient of `scan`. dstate [H, N, P] goes from the block's end to its start; dadded [K, H, N, P];
 * dlast [K, H, N] are the summands of d a_last. The last N rows of dxs hold what the chunks' outputs
 * ask of the states, those of xs the states. */
static inline void NAME(scan_backward_row)(const Shape *s, int64_t hn, const OP *dxs, const OP *xs,
            const double *a, float *dstate, OP *dadded, float *dlast) {
    const int64_t H = s->heads, P = s->headdim, N = s->state, Q = s->q;
    const int64_t h = hn / N, n = hn % N;
    float *restrict carry = dstate + hn * P;
    for (int64_t k = s->chunks - 1; k >= 0; k--) {
        const int64_t kh = k * H + h, row = (kh * (Q + N) + Q + n) * P;
        if (k + 1 < s->chunks && begins(s, k + 1)) memset(carry, 0, (size_t)P * sizeof *carry);
        const float decay = exp_clamped((float)a[kh * Q + Q - 1]);
        const OP *restrict state = xs + row, *restrict plus = dxs + row;
        OP *restrict to = dadded + (kh * N + n) * P;
        float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
        for (int64_t p = 0; p < P; p++) {
            float d = carry[p];
            to[p] = STORE(d);
            dot += d * LOAD(state[p]);
            carry[p] = decay * d + LOAD(plus[p]);
        }
        dlast[kh * N + n] = decay * dot;
    }
}

void NAME(scan_backward)(const Shape *s, const OP *dxs, const OP *xs, const double *a, float *dstate,
                         OP *dadded, float *dlast) {
    const int64_t H = s->heads, N = s->state;
#pragma omp parallel for schedule(static) num_threads(s->threads)
    for (int64_t hn = 0; hn < H * N; hn++)
        NAME(scan_backward_row)(s, hn, dxs, xs, a, dstate, dadded, dlast);
}

/* From the gradients of a chunk's step sizes `ddt` and summed decays `da` for one head: the head's dt column
 * of dzx, and what it adds to d A and d dt_bias (the first and last of its three in partial). */
static inline void NAME(steps_backward)(const Shape *s, int64_t k, int64_t h, const double *da,
                                        const float *ddt, const float *step, const float *A, const OP *zx,
                                        int64_t ld, const float *dt_bias, OP *dzx, int64_t ld_dzx,
                                        double *partial) {
    const int64_t H = s->heads, column = 2 * (H * s->headdim + s->state) + h;
    const int64_t rows = s->stop[k] - s->start[k];
    float slope[s->q]; /* of softplus */
    for (int64_t i = 0; i < rows; i++) slope[i] = LOAD(zx[(s->start[k] + i) * ld + column]) + dt_bias[h];
#pragma omp simd
    for (int64_t i = 0; i < rows; i++) slope[i] = sigmoid(slope[i]);
    /* a is a running sum of dt A: its gradient runs back from the end. */
    double running = 0.0, sum_a = 0.0, sum_bias = 0.0;
    for (int64_t i = s->q - 1; i >= 0; i--) {
        const int64_t t = s->start[k] + i;
        running += da[i];
        if (i >= rows) continue;
        sum_a += running * (double)step[i];
        float draw = (float)((double)ddt[i] + running * (double)A[h]) * slope[i];
        dzx[t * ld_dzx + column] = STORE(draw);
        sum_bias += (double)draw;
    }
    partial[(k * H + h) * 3] = sum_a;
    partial[(k * H + h) * 3 + 2] = sum_bias;
}

/* total [3, H] += the sum of partial [K, H, 3] over the chunks. */
static inline void NAME(collect_heads)(const Shape *s, const double *partial, double *total) {
    const int64_t H = s->heads;
    for (int64_t kh = 0; kh < s->chunks * H; kh++)
        for (int64_t j = 0; j < 3; j++) total[j * H + kh % H] += partial[kh * 3 + j];
}

/* Gradient of `weights`, and from there of the step sizes.
 *
 * dwc [K, H, Q, Q + N], dbw [K, H, Q, N], dlast of scan_backward. Out: dg [K, Q, Q]; db, dc [K, Q, N], the
 * parts that do not go through g; the dt columns of dzx; d A, d D, d dt_bias are added to total [3, H].
 * partial: room for [K, H, 3]. */
void NAME(weights_backward)(const Shape *s, const OP *dwc, const OP *dbw, const float *dlast,
                            const OP *g, const OP *b, const OP *c, const float *dt, const double *a,
                            const float *A, const OP *zx, int64_t ld, const float *dt_bias, OP *dg, OP *db,
                            OP *dc, OP *dzx, int64_t ld_dzx, double *partial,
                            double *total) {
    const int64_t H = s->heads, N = s->state, Q = s->q;
#pragma omp parallel for schedule(static) num_threads(s->threads)
    for (int64_t k = 0; k < s->chunks; k++) {
        float sum_g[Q * Q], sum_b[Q * N], sum_c[Q * N];
        double da[Q];
        float ddt[Q], column[Q];
        memset(sum_g, 0, sizeof sum_g);
        memset(sum_b, 0, sizeof sum_b);
        memset(sum_c, 0, sizeof sum_c);
        for (int64_t h = 0; h < H; h++) {
            const int64_t kh = k * H + h;
            const float *restrict step = dt + kh * Q;
            const double *restrict sum = a + kh * Q;
            double skip = 0.0, last = 0.0;
            memset(column, 0, sizeof column);
            for (int64_t n = 0; n < N; n++) last += (double)dlast[kh * N + n];
            for (int64_t i = 0; i < Q; i++) {
                const OP *restrict dw = dwc + (kh * Q + i) * (Q + N);
                const OP *restrict score = g + (k * Q + i) * Q;
                float *restrict to = sum_g + i * Q;
                const double here = sum[i];
                float row = 0.0f;
#pragma omp simd reduction(+ : row)
                for (int64_t j = 0; j <= i; j++) {
                    float d = LOAD(dw[j]) * exp_clamped((float)(here - sum[j]));
                    float whole = d * LOAD(score[j]);
                    to[j] += d * step[j];
                    column[j] += whole;
                    row += whole * step[j];
                }
                skip += (double)LOAD(dw[i]);
                da[i] = (double)row;
            }
            for (int64_t j = 0; j < Q; j++) {
                da[j] -= (double)(column[j] * step[j]);
                ddt[j] = column[j];
            }
            for (int64_t i = 0; i < Q; i++) {
                const int64_t at = k * Q + i;
                const OP *restrict dcw = dwc + (kh * Q + i) * (Q + N) + Q;
                const OP *restrict dbw_row = dbw + (kh * Q + i) * N;
                const OP *restrict b_row = b + at * N, *restrict c_row = c + at * N;
                float *restrict to_b = sum_b + i * N, *restrict to_c = sum_c + i * N;
                const float decay = exp_clamped((float)sum[i]);
                const float rest = exp_clamped((float)(sum[Q - 1] - sum[i])), weight = rest * step[i];
                float dot_c = 0.0f, dot_b = 0.0f;
#pragma omp simd reduction(+ : dot_c, dot_b)
                for (int64_t n = 0; n < N; n++) {
                    float d = LOAD(dcw[n]) * decay;
                    to_c[n] += d;
                    dot_c += d * LOAD(c_row[n]);
                    d = LOAD(dbw_row[n]);
                    to_b[n] += d * weight;
                    dot_b += d * LOAD(b_row[n]);
                }
                ddt[i] += rest * dot_b;
                da[i] += (double)dot_c - (double)(weight * dot_b);
                last += (double)(weight * dot_b);
            }
            da[Q - 1] += last;
            partial[kh * 3 + 1] = skip;
            NAME(steps_backward)(s, k, h, da, ddt, step, A, zx, ld, dt_bias, dzx, ld_dzx, partial);
        }
        for (int64_t i = 0; i < Q; i++) /* nothing above the diagonal has been added */
            for (int64_t j = 0; j < Q; j++) dg[(k * Q + i) * Q + j] = STORE(sum_g[i * Q + j]);
        for (int64_t i = 0; i < Q * N; i++) db[k * Q * N + i] = STORE(sum_b[i]);
        for (int64_t i = 0; i < Q * N; i++) dc[k * Q * N + i] = STORE(sum_c[i]);
    }
    NAME(collect_heads)(s, partial, total);
}

/* Gradient of SiLU and convolution for LANES channels from `c` on and chunk k: four taps.
 *
 * The gradient before the activation is needed for the chunk's tokens and the three after them: those are
 * computed here as well as in the next chunk, or stand in `carry` past the sequence's end in the block.
 * The incoming gradient is grad + rest. Rows count from the start of the sequence. */
static inline void NAME(unconvolve_vec)(const Shape *s, int64_t k, int64_t c, NAME(Place) grad,
                                        NAME(Place) rest, const OP *xbc, int64_t ld,
                                        const OP *tail, const float *weight, const float *bias_of,
                                        const float *carry, float *first_dv, OP *dxbc,
                                        int64_t ld_dxbc, float *partial) {
    const int64_t W = s->heads * s->headdim + 2 * s->state;
    const int64_t from = s->start[k] - s->base[k], to = s->stop[k] - s->base[k];
    const int64_t rows = s->end[k] - s->base[k];
    const vec w0 = load_vec_f32(weight + c), w1 = load_vec_f32(weight + W + c);
    const vec w2 = load_vec_f32(weight + 2 * W + c), w3 = load_vec_f32(weight + 3 * W + c);
    const vec bias = load_vec_f32(bias_of + c), zero = {0};
    vec x0 = LOAD_VEC(NAME(input)(xbc, ld, tail, 4, W, from - 3) + c);
    vec x1 = LOAD_VEC(NAME(input)(xbc, ld, tail, 4, W, from - 2) + c);
    vec x2 = LOAD_VEC(NAME(input)(xbc, ld, tail, 4, W, from - 1) + c);
    vec d0 = zero, d1 = zero, d2 = zero;
    vec dw0 = zero, dw1 = zero, dw2 = zero, dw3 = zero, dbias = zero;
    for (int64_t t = from; t < to; t++) {
        const vec x3 = LOAD_VEC(xbc + t * ld + c);
        const vec incoming = NAME(both_vec)(grad, rest, k, t - from);
        const vec d3 = incoming * silu_slope_vec(bias + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3);
        dw0 += d3 * x0, dw1 += d3 * x1, dw2 += d3 * x2, dw3 += d3 * x3, dbias += d3;
        if (first_dv && t < 3) store_vec_f32(first_dv + t * W + c, d3);
        if (t - 3 >= from)
            STORE_VEC(dxbc + (t - 3) * ld_dxbc + c, w3 * d0 + w2 * d1 + w1 * d2 + w0 * d3);
        x0 = x1, x1 = x2, x2 = x3, d0 = d1, d1 = d2, d2 = d3;
    }
    for (int64_t t = to; t < to + 3; t++) {
        vec d3;
        vec x3 = zero;
        if (t >= rows) {
            d3 = load_vec_f32(carry + (t - rows) * W + c);
            if (first_dv && t < 3) store_vec_f32(first_dv + t * W + c, d3);
        } else { /* the chunk is full: row t - to of the next one */
            const vec incoming = NAME(both_vec)(grad, rest, k + 1, t - to);
            x3 = LOAD_VEC(xbc + t * ld + c);
            d3 = incoming * silu_slope_vec(bias + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3);
        }
        if (t - 3 >= from)
            STORE_VEC(dxbc + (t - 3) * ld_dxbc + c, w3 * d0 + w2 * d1 + w1 * d2 + w0 * d3);
        x0 = x1, x1 = x2, x2 = x3, d0 = d1, d1 = d2, d2 = d3;
    }
    store_vec_f32(partial + c, dw0);
    store_vec_f32(partial + W + c, dw1);
    store_vec_f32(partial + 2 * W + c, dw2);
    store_vec_f32(partial + 3 * W + c, dw3);
    store_vec_f32(partial + 4 * W + c, dbias);
}

/* The same for one channel and any filter. */
static inline void NAME(unconvolve_one)(const Shape *s, int64_t k, int64_t c, NAME(Place) grad,
                                        NAME(Place) rest, const OP *xbc, int64_t ld,
                                        const OP *tail, const float *weight, const float *bias,
                                        const float *carry, float *first_dv, OP *dxbc,
                                        int64_t ld_dxbc, float *partial) {
    const int64_t Q = s->q, W = s->heads * s->headdim + 2 * s->state, taps = s->taps;
    const int64_t from = s->start[k] - s->base[k], to = s->stop[k] - s->base[k];
    const int64_t rows = s->end[k] - s->base[k];
    float dv[Q + MAX_TAPS], dweight[MAX_TAPS + 1] = {0};
    for (int64_t t = from; t < to + taps - 1; t++) {
        if (t >= rows) {
            dv[t - from] = carry[(t - rows) * W + c];
        } else {
            float v = bias[c], x[MAX_TAPS];
            for (int64_t j = 0; j < taps; j++) {
                x[j] = LOAD(NAME(input)(xbc, ld, tail, taps, W, t - (taps - 1) + j)[c]);
                v += weight[j * W + c] * x[j];
            }
            const int64_t chunk = t < to ? k : k + 1, i = t < to ? t - from : t - to;
            float incoming = LOAD(*NAME(row)(grad, chunk, i));
            if (rest.at) incoming += LOAD(*NAME(row)(rest, chunk, i));
            float d = incoming * silu_slope(v);
            dv[t - from] = d;
            if (t < to) {
                for (int64_t j = 0; j < taps; j++) dweight[j] += d * x[j];
                dweight[taps] += d;
            }
        }
        if (first_dv && t < taps - 1) first_dv[t * W + c] = dv[t - from];
    }
    for (int64_t t = from; t < to; t++) {
        float sum = 0.0f;
        for (int64_t j = 0; j < taps; j++) sum += weight[j * W + c] * dv[t - from + taps - 1 - j];
        dxbc[t * ld_dxbc + c] = STORE(sum);
    }
    for (int64_t j = 0; j <= taps; j++) partial[j * W + c] = dweight[j];
}

/* Gradient of convolution and SiLU: the x, B and C columns of dzx.
 *
 * The incoming ones come in two summands: dxs [K, H, Q + N, P], its first Q rows, and dx_rest
 * [K, H, Q, P]; db, dc [K, Q, N] and their rests; there are none where dx_rest is NULL. carry [taps - 1, W]
 * are the gradients before the activation of the first tokens after the block (zeros where it holds whole
 * sequences), first_dv receives those of this block's first tokens. d weight and d bias are added to total [taps + 1, W]. partial: room for
 * [K, taps + 1, W]. */
static inline void NAME(convolution_backward_chunk)(const Shape *s, int64_t k, OP *dxs, OP *dx_rest, OP
            *db, OP *db_rest, OP *dc, OP *dc_rest, const OP *zx, int64_t ld, const OP *tail, const float
            *conv_weight, const float *conv_bias, const float *carry, float *first_dv, OP *dzx, int64_t
            ld_dzx, float *partial) {
    const int64_t H = s->heads, P = s->headdim, N = s->state, Q = s->q, I = H * P, W = I + 2 * N;
    float *to = partial + k * (s->taps + 1) * W;
    const int64_t base = s->base[k];
    const OP *xbc = zx + base * ld + I;
    OP *dxbc = dzx + base * ld_dzx + I;
    float *first_of_block = base == 0 ? first_dv : NULL;
    NAME(fetch)(xbc, ld, s->start[k] - base, s->stop[k] - base, W);
    for (int64_t part = 0; part < H + 2; part++) {
        const int64_t first = part < H ? part * P : I + (part - H) * N, size = part < H ? P : N;
        const NAME(Place) grad = NAME(place)(s, part, dxs, Q + N, db, dc);
        NAME(Place) rest = {0};
        if (dx_rest) rest = NAME(place)(s, part, dx_rest, Q, db_rest, dc_rest);
        int64_t done = 0;
        for (; s->taps == 4 && done + LANES <= size; done += LANES)
            NAME(unconvolve_vec)(s, k, first + done, NAME(after)(grad, done),
                                 NAME(after)(rest, done), xbc, ld, tail, conv_weight,
                                 conv_bias, carry, first_of_block, dxbc, ld_dzx, to);
        for (; done < size; done++)
            NAME(unconvolve_one)(s, k, first + done, NAME(after)(grad, done),
                                 NAME(after)(rest, done), xbc, ld, tail, conv_weight,
                                 conv_bias, carry, first_of_block, dxbc, ld_dzx, to);
    }
}

void NAME(convolution_backward)(const Shape *s, OP *dxs, OP *dx_rest, OP *db, OP *db_rest, OP *dc,
                                OP *dc_rest, const OP *zx, int64_t ld, const OP *tail,
                                const float *conv_weight, const float *conv_bias,
                                const float *carry, float *first_dv, OP *dzx, int64_t ld_dzx,
                                float *partial, float *total) {
    const int64_t W = s->heads * s->headdim + 2 * s->state;
#pragma omp parallel for schedule(static) num_threads(s->threads)
    for (int64_t k = 0; k < s->chunks; k++)
        NAME(convolution_backward_chunk)(s, k, dxs, dx_rest, db, db_rest, dc, dc_rest, zx, ld, tail,
                                         conv_weight, conv_bias, carry, first_dv, dzx, ld_dzx,
                                         partial);
    NAME(collect)(s->chunks, (s->taps + 1) * W, partial, (s->taps + 1) * W, total);
}
