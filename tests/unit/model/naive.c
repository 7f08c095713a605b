/* The oracle. Names: h normed input, q k v, p probabilities, o attention's output, g u gate and up, s their
 * product. */
#include "naive.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct layer {
    double *x, *r1, *h1, *q0, *k0, *v, *rq, *rk, *q, *k, *p, *o, *x2, *r2, *h2, *g, *u, *s;
};

struct sizes {
    int64_t n, C, Hq, Hk, D, F, V;
    double eps, theta;
};

static double *zeros(int64_t count)
{
    return calloc((size_t)count, sizeof(double));
}

/* y[n][out] += x[n][in] w[out][in]^T */
static void product(double *y, const double *x, const double *w, int64_t n, int64_t out, int64_t in)
{
    for (int64_t t = 0; t < n; t++)
        for (int64_t i = 0; i < out; i++)
            for (int64_t j = 0; j < in; j++)
                y[t * out + i] += x[t * in + j] * w[i * in + j];
}

static void product_back(double *dx, double *dw, const double *dy, const double *x, const double *w,
                         int64_t n, int64_t out, int64_t in)
{
    for (int64_t t = 0; t < n; t++)
        for (int64_t i = 0; i < out; i++)
            for (int64_t j = 0; j < in; j++) {
                dx[t * in + j] += dy[t * out + i] * w[i * in + j];
                dw[i * in + j] += dy[t * out + i] * x[t * in + j];
            }
}

static void norm(double *y, double *r, const double *x, const double *w, int64_t rows, int64_t n, double eps)
{
    for (int64_t t = 0; t < rows; t++) {
        double squares = 0;
        for (int64_t j = 0; j < n; j++)
            squares += x[t * n + j] * x[t * n + j];
        r[t] = 1 / sqrt(squares / (double)n + eps);
        for (int64_t j = 0; j < n; j++)
            y[t * n + j] = x[t * n + j] * r[t] * w[j];
    }
}

/* y_j = w_j x_j r: dx_j = w_j dy_j r - x_j r^3/n sum_i w_i dy_i x_i */
static void norm_back(double *dx, double *dw, const double *dy, const double *r, const double *x,
                      const double *w, int64_t rows, int64_t n)
{
    for (int64_t t = 0; t < rows; t++) {
        double inner = 0;
        for (int64_t j = 0; j < n; j++)
            inner += w[j] * dy[t * n + j] * x[t * n + j];
        for (int64_t j = 0; j < n; j++) {
            dw[j] += dy[t * n + j] * x[t * n + j] * r[t];
            dx[t * n + j] +=
                w[j] * dy[t * n + j] * r[t] - x[t * n + j] * r[t] * r[t] * r[t] / (double)n * inner;
        }
    }
}

/* The pair (i, i + D/2) turned by position times frequency, the angle rounded as transformers rounds it. */
static void turn(double *x, const struct sizes *z, int64_t heads, double sign)
{
    for (int64_t t = 0; t < z->n; t++)
        for (int64_t i = 0; i < z->D / 2; i++) {
            float frequency = 1.0f / (float)pow(z->theta, (double)((float)(2 * i) / (float)z->D));
            double angle = (double)((float)t * frequency), c = cos(angle), s = sign * sin(angle);
            for (int64_t h = 0; h < heads; h++) {
                double *a = x + (t * heads + h) * z->D + i, *b = a + z->D / 2;
                double first = *a * c - *b * s, second = *b * c + *a * s;
                *a = first;
                *b = second;
            }
        }
}

/* p[h][t][j], j <= t: softmax of q_t k_j / sqrt(D); o = p v */
static void attend(const struct layer *l, const struct sizes *z)
{
    int64_t n = z->n, D = z->D;
    for (int64_t h = 0; h < z->Hq; h++)
        for (int64_t t = 0; t < n; t++) {
            const double *q = l->q + (t * z->Hq + h) * D;
            double *p = l->p + (h * n + t) * n, *o = l->o + (t * z->Hq + h) * D, total = 0, max = -HUGE_VAL;
            int64_t kv = h / (z->Hq / z->Hk);
            for (int64_t j = 0; j <= t; j++) {
                for (int64_t i = 0; i < D; i++)
                    p[j] += q[i] * l->k[(j * z->Hk + kv) * D + i] / sqrt((double)D);
                max = fmax(max, p[j]);
            }
            for (int64_t j = 0; j <= t; j++)
                total += p[j] = exp(p[j] - max);
            for (int64_t j = 0; j <= t; j++) {
                p[j] /= total;
                for (int64_t i = 0; i < D; i++)
                    o[i] += p[j] * l->v[(j * z->Hk + kv) * D + i];
            }
        }
}

static void attend_back(double *dq, double *dk, double *dv, const double *d_o, const struct layer *l,
                        const struct sizes *z)
{
    int64_t n = z->n, D = z->D;
    double *dp = zeros(n), root = sqrt((double)D);
    for (int64_t h = 0; h < z->Hq; h++)
        for (int64_t t = 0; t < n; t++) {
            const double *p = l->p + (h * n + t) * n, *out = d_o + (t * z->Hq + h) * D;
            int64_t kv = h / (z->Hq / z->Hk), row = (t * z->Hq + h) * D;
            double mean = 0;
            for (int64_t j = 0; j <= t; j++) {
                dp[j] = 0;
                for (int64_t i = 0; i < D; i++) {
                    dp[j] += out[i] * l->v[(j * z->Hk + kv) * D + i];
                    dv[(j * z->Hk + kv) * D + i] += p[j] * out[i];
                }
                mean += p[j] * dp[j];
            }
            for (int64_t j = 0; j <= t; j++)
                for (int64_t i = 0; i < D; i++) {
                    double ds = p[j] * (dp[j] - mean) / root;
                    dq[row + i] += ds * l->k[(j * z->Hk + kv) * D + i];
                    dk[(j * z->Hk + kv) * D + i] += ds * l->q[row + i];
                }
        }
    free(dp);
}

enum { NORM1, WQ, WK, WV, NORMQ, NORMK, WO, NORM2, WG, WU, WD, BLOCK };

static void layer_forward(struct layer *l, double *out, double *const *w, const struct sizes *z)
{
    int64_t n = z->n, C = z->C, Q = z->Hq * z->D, K = z->Hk * z->D, F = z->F;
    norm(l->h1, l->r1, l->x, w[NORM1], n, C, z->eps);
    product(l->q0, l->h1, w[WQ], n, Q, C);
    product(l->k0, l->h1, w[WK], n, K, C);
    product(l->v, l->h1, w[WV], n, K, C);
    norm(l->q, l->rq, l->q0, w[NORMQ], n * z->Hq, z->D, z->eps);
    norm(l->k, l->rk, l->k0, w[NORMK], n * z->Hk, z->D, z->eps);
    turn(l->q, z, z->Hq, 1);
    turn(l->k, z, z->Hk, 1);
    attend(l, z);
    memcpy(l->x2, l->x, (size_t)(n * C) * sizeof(double));
    product(l->x2, l->o, w[WO], n, C, Q);
    norm(l->h2, l->r2, l->x2, w[NORM2], n, C, z->eps);
    product(l->g, l->h2, w[WG], n, F, C);
    product(l->u, l->h2, w[WU], n, F, C);
    for (int64_t i = 0; i < n * F; i++)
        l->s[i] = l->g[i] / (1 + exp(-l->g[i])) * l->u[i];
    memcpy(out, l->x2, (size_t)(n * C) * sizeof(double));
    product(out, l->s, w[WD], n, C, F);
}

/* dx: in, the gradient of the block's output; out, of its input. */
static void layer_back(const struct layer *l, double *dx, double **dw, double *const *w,
                       const struct sizes *z)
{
    int64_t n = z->n, C = z->C, Q = z->Hq * z->D, K = z->Hk * z->D, F = z->F;
    double *ds = zeros(n * F), *dg = zeros(n * F), *du = zeros(n * F), *dh = zeros(n * C), *da = zeros(n * C);
    double *d_o = zeros(n * Q), *dq = zeros(n * Q), *dk = zeros(n * K), *dv = zeros(n * K);
    double *dq0 = zeros(n * Q), *dk0 = zeros(n * K), *dh1 = zeros(n * C);
    product_back(ds, dw[WD], dx, l->s, w[WD], n, C, F);
    for (int64_t i = 0; i < n * F; i++) {
        double sigmoid = 1 / (1 + exp(-l->g[i]));
        dg[i] = ds[i] * l->u[i] * (sigmoid + l->g[i] * sigmoid * (1 - sigmoid));
        du[i] = ds[i] * l->g[i] * sigmoid;
    }
    product_back(dh, dw[WG], dg, l->h2, w[WG], n, F, C);
    product_back(dh, dw[WU], du, l->h2, w[WU], n, F, C);
    norm_back(dx, dw[NORM2], dh, l->r2, l->x2, w[NORM2], n, C);
    memcpy(da, dx, (size_t)(n * C) * sizeof(double));
    product_back(d_o, dw[WO], da, l->o, w[WO], n, C, Q);
    attend_back(dq, dk, dv, d_o, l, z);
    turn(dq, z, z->Hq, -1);
    turn(dk, z, z->Hk, -1);
    norm_back(dq0, dw[NORMQ], dq, l->rq, l->q0, w[NORMQ], n * z->Hq, z->D);
    norm_back(dk0, dw[NORMK], dk, l->rk, l->k0, w[NORMK], n * z->Hk, z->D);
    product_back(dh1, dw[WQ], dq0, l->h1, w[WQ], n, Q, C);
    product_back(dh1, dw[WK], dk0, l->h1, w[WK], n, K, C);
    product_back(dh1, dw[WV], dv, l->h1, w[WV], n, K, C);
    norm_back(dx, dw[NORM1], dh1, l->r1, l->x, w[NORM1], n, C);
    double *all[] = {ds, dg, du, dh, da, d_o, dq, dk, dv, dq0, dk0, dh1};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

/* dlogits = -(onehot - softmax) of the labelled rows, the gradient of minus the sum. */
static double head(double *logprob, double *dlogits, const double *logits, const int32_t *labels,
                   const struct sizes *z)
{
    double sum = 0;
    for (int64_t t = 0; t < z->n; t++) {
        const double *row = logits + t * z->V;
        double total = 0, max = -HUGE_VAL;
        logprob[t] = 0;
        if (labels[t] < 0)
            continue;
        for (int64_t i = 0; i < z->V; i++)
            max = fmax(max, row[i]);
        for (int64_t i = 0; i < z->V; i++)
            total += exp(row[i] - max);
        logprob[t] = row[labels[t]] - max - log(total);
        sum += logprob[t];
        for (int64_t i = 0; i < z->V; i++)
            dlogits[t * z->V + i] = exp(row[i] - max) / total - (i == labels[t]);
    }
    return sum;
}

/* Every array of a layer out of one piece, [n][…] each. */
static double *layer_lay(struct layer *l, const struct sizes *z)
{
    int64_t n = z->n, C = z->C, Q = z->Hq * z->D, K = z->Hk * z->D, F = z->F;
    const struct {
        double **place;
        int64_t count;
    } parts[] = {{&l->x, n * C},  {&l->r1, n},    {&l->h1, n * C},        {&l->q0, n * Q},
                 {&l->k0, n * K}, {&l->v, n * K}, {&l->rq, n * z->Hq},    {&l->rk, n * z->Hk},
                 {&l->q, n * Q},  {&l->k, n * K}, {&l->p, z->Hq * n * n}, {&l->o, n * Q},
                 {&l->x2, n * C}, {&l->r2, n},    {&l->h2, n * C},        {&l->g, n * F},
                 {&l->u, n * F},  {&l->s, n * F}};
    int64_t total = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        total += parts[i].count;
    double *piece = zeros(total), *at = piece;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        *parts[i].place = at;
        at += parts[i].count;
    }
    return piece;
}

double naive_sequence(const struct model_config *c, const struct param_table *table, double *const *w,
                      double **dw, const int32_t *tokens, const int32_t *labels, int64_t n, double *logprob)
{
    const struct sizes z = {n,      c->hidden,     c->q_heads, c->kv_heads,  c->head_dim,
                            c->ffn, c->vocabulary, c->rms_eps, c->rope_theta};
    int64_t C = z.C, L = c->layers, last = table->count - 1;
    int64_t final_norm = c->tied ? last : last - 1, head_weight = c->tied ? 0 : last;
    struct layer *layers = calloc((size_t)L + 1, sizeof *layers); /* the one past the end holds x only */
    double **pieces = calloc((size_t)L + 1, sizeof *pieces);
    for (int64_t i = 0; i <= L; i++)
        pieces[i] = layer_lay(&layers[i], &z);
    for (int64_t t = 0; t < n; t++)
        memcpy(layers[0].x + t * C, w[0] + tokens[t] * C, (size_t)C * sizeof(double));
    for (int64_t i = 0; i < L; i++)
        layer_forward(&layers[i], layers[i + 1].x, w + 1 + i * BLOCK, &z);
    double *h = zeros(n * C), *r = zeros(n), *logits = zeros(n * z.V), *dlogits = zeros(n * z.V);
    double *dh = zeros(n * C), *dx = zeros(n * C);
    norm(h, r, layers[L].x, w[final_norm], n, C, z.eps);
    product(logits, h, w[head_weight], n, z.V, C);
    double sum = head(logprob, dlogits, logits, labels, &z);
    if (dw) {
        product_back(dh, dw[head_weight], dlogits, h, w[head_weight], n, z.V, C);
        norm_back(dx, dw[final_norm], dh, r, layers[L].x, w[final_norm], n, C);
        for (int64_t i = L - 1; i >= 0; i--)
            layer_back(&layers[i], dx, dw + 1 + i * BLOCK, w + 1 + i * BLOCK, &z);
        for (int64_t t = 0; t < n; t++)
            for (int64_t j = 0; j < C; j++)
                dw[0][tokens[t] * C + j] += dx[t * C + j];
    }
    for (int64_t i = 0; i <= L; i++)
        free(pieces[i]);
    double *all[] = {h, r, logits, dlogits, dh, dx};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    free(pieces);
    free(layers);
    return sum;
}
