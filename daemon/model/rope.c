/* The tables of the rotary embedding (Su et al. 2021), in fp32 as transformers forms them: the inverse
 * frequencies 1 / theta^(2i/D), each step rounded to fp32, then position times frequency in fp32, then cosine
 * and sine of that. */
#include "rope.h"

#include <math.h>

/* torch raises a float tensor's power with a float base, good to one unit in the last place: so is this. */
float rope_inverse_frequency(double theta, int64_t i, int64_t head_dim)
{
    float exponent = (float)(2 * i) / (float)head_dim;
    float power = (float)pow((double)(float)theta, (double)exponent);
    return 1.0f / power;
}

void rope_row(float *cosines, float *sines, double theta, int64_t head_dim, int64_t position)
{
    for (int64_t i = 0; i < head_dim / 2; i++) {
        float angle = (float)position * rope_inverse_frequency(theta, i, head_dim);
        cosines[i] = (float)cos((double)angle);
        sines[i] = (float)sin((double)angle);
    }
}
