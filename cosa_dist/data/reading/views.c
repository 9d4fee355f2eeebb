/* The inner loops of views.py, in Pillow's own integer and float arithmetic: results are Pillow's, bit for bit.
 *
 * Images are planes [3, height, width] uint8 in C order, a photograph's source window is [height, width, 3].
 * Compiled by views.py, which passes -ffp-contract=off: fused products would round differently.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(COSA_DISPATCH)
#define FAST __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define FAST
#endif

enum { TAPS = 64, RESIZE_BITS = 22, HALF = 1 << (RESIZE_BITS - 1), BOX_BITS = 24 };

/* Weights of a triangle filter for one output pixel (Pillow's precompute_coeffs and normalize_coeffs_8bpc);
 * returns the number of taps, TAPS + 1 if there are too many, and sets the first source pixel. */
static int triangle(int source, int target, int index, int *first, int32_t *weights)
{
    double scale = (double)source / target, filter = scale < 1.0 ? 1.0 : scale;
    double centre = (index + 0.5) * scale, total = 0.0, values[TAPS];
    int low = (int)(centre - filter + 0.5), high = (int)(centre + filter + 0.5);
    if (low < 0) low = 0;
    if (high > source) high = source;
    *first = low;
    if (high - low > TAPS) return TAPS + 1;
    for (int tap = 0; tap < high - low; tap++) {
        double distance = fabs((tap + low - centre + 0.5) * (1.0 / filter));
        values[tap] = distance < 1.0 ? 1.0 - distance : 0.0;
        total += values[tap];
    }
    for (int tap = 0; tap < high - low; tap++)
        weights[tap] = (int)(0.5 + values[tap] / total * (1 << RESIZE_BITS));
    return high - low;
}

/* A row of pixels of four bytes, mixed of `taps` neighbours each; `weights` has four equal ones a pixel and tap. */
FAST static void resize_row(const uint32_t *restrict row, const int32_t *firsts, const int32_t *restrict weights,
                            int taps, int width, uint32_t *restrict pixels, int32_t *restrict sums,
                            uint8_t *restrict out)
{
    const uint8_t *values = (const uint8_t *)pixels;
    int count = 4 * width;
    if (taps == 2) {
        for (int x = 0; x < width; x++) pixels[x] = row[firsts[x]];
        for (int x = 0; x < width; x++) pixels[width + x] = row[firsts[x] + 1];
        for (int i = 0; i < count; i++)
            out[i] = (HALF + values[i] * weights[i] + values[count + i] * weights[count + i]) >> RESIZE_BITS;
        return;
    }
    for (int i = 0; i < count; i++) sums[i] = HALF;
    for (int tap = 0; tap < taps; tap++, weights += count) {
        for (int x = 0; x < width; x++) pixels[x] = row[firsts[x] + tap];
        for (int i = 0; i < count; i++) sums[i] += values[i] * weights[i];
    }
    for (int i = 0; i < count; i++) out[i] = sums[i] >> RESIZE_BITS;
}

/* The weighted sum of `taps` rows of pixels, as one row of each plane. */
FAST static void resize_column(const uint8_t *restrict rows, const int32_t *weights, int taps, int width,
                               int32_t *restrict sums, uint8_t *restrict out, int64_t plane)
{
    int count = 4 * width;
    if (taps == 2) {
        int32_t one = weights[0], two = weights[1];
        for (int i = 0; i < count; i++) sums[i] = (HALF + rows[i] * one + rows[count + i] * two) >> RESIZE_BITS;
    } else {
        for (int i = 0; i < count; i++) sums[i] = HALF + rows[i] * weights[0];
        for (int tap = 1; tap < taps; tap++)
            for (int i = 0; i < count; i++) sums[i] += rows[tap * count + i] * weights[tap];
        for (int i = 0; i < count; i++) sums[i] >>= RESIZE_BITS;
    }
    for (int c = 0; c < 3; c++)
        for (int x = 0; x < width; x++) out[c * plane + x] = sums[4 * x + c];
}

/* Pixels [top, top + height) x [left, left + width) of a photograph resized to `target` pixels (height, width).
 *
 * `window` holds the photograph's rows from `origin[0]` and columns from `origin[1]` on, `rows` x `columns` pixels of
 * four bytes, which must cover what the result is made of (else 1 is returned). The result goes to `out`, planes of
 * `side` x `side`; a flipped one is mirrored. `scratch` has (rows + 6) * width pixels of four bytes, `tables`
 * width * (4 * taps + 1) int32. */
int cosa_resize(const uint32_t *window, int rows, int columns, const int32_t *origin, const int32_t *source,
                const int32_t *target, int top, int left, int height, int width, int flip, uint8_t *out, int side,
                uint8_t *scratch, int32_t *tables, int taps)
{
    int32_t *firsts = tables, *weights = tables + width, found[TAPS], *sums = (int32_t *)(scratch + 4 * rows * width);
    uint32_t *pixels = (uint32_t *)(sums + 4 * width);
    if (taps > TAPS || taps > columns) return 1;
    memset(weights, 0, sizeof *weights * width * taps * 4);
    for (int x = 0; x < width; x++) {
        int place = flip ? width - 1 - x : x, first;
        int count = triangle(source[1], target[1], left + x, &first, found);
        first -= origin[1];
        if (count > taps || first < 0 || first + count > columns) return 1;
        /* All have `taps` weights, some of them zero, and no pixel beyond the window is looked at. */
        firsts[place] = first + taps > columns ? columns - taps : first;
        for (int tap = 0; tap < count; tap++)
            for (int c = 0; c < 4; c++)
                weights[4 * ((first - firsts[place] + tap) * width + place) + c] = found[tap];
    }
    for (int y = 0; y < rows; y++)
        resize_row(window + y * columns, firsts, weights, taps, width, pixels, sums, scratch + 4 * y * width);
    for (int y = 0; y < height; y++) {
        int first, count = triangle(source[0], target[0], top + y, &first, found);
        first -= origin[0];
        if (count > TAPS || first < 0 || first + count > rows) return 1;
        resize_column(scratch + 4 * first * width, found, count, width, sums, out + y * side, (int64_t)side * side);
    }
    return 0;
}

/* One box pass: `in` has `inner` + 1 values before and behind, `step` apart; Pillow's LineBoxBlur8. */
static inline __attribute__((always_inline)) void box(const uint8_t *restrict in, uint8_t *restrict out, int count,
                                                      int step, const int inner, uint32_t whole, uint32_t edge)
{
    for (int i = 0; i < count; i++) {
        uint32_t middle = in[i];
        if (inner) middle += in[i - step] + in[i + step];
        uint32_t ends = in[i - (inner + 1) * step] + in[i + (inner + 1) * step];
        out[i] = (middle * whole + ends * edge + (1u << (BOX_BITS - 1))) >> BOX_BITS;
    }
}

FAST static void box_narrow(const uint8_t *in, uint8_t *out, int count, int step, uint32_t whole, uint32_t edge)
{
    box(in, out, count, step, 0, whole, edge);
}

FAST static void box_wide(const uint8_t *in, uint8_t *out, int count, int step, uint32_t whole, uint32_t edge)
{
    box(in, out, count, step, 1, whole, edge);
}

/* Three box passes of rows, then three of columns, in place, on the pixels [top, bottom) x [left, right) of square
 * planes with sides of `side`; what lies outside counts as the outermost pixels. `inner` is 0 or 1: the whole pixels
 * on each side of the middle one. `scratch` has 2 * (bottom - top + 4) * (right - left + 4) bytes. */
int cosa_blur(uint8_t *planes, int side, int top, int bottom, int left, int right, int inner, uint32_t whole,
              uint32_t edge, uint8_t *scratch)
{
    int height = bottom - top, width = right - left, margin = inner + 1;
    if (inner < 0 || inner > 1) return 1;
    for (int c = 0; c < 3; c++) {
        uint8_t *image = planes + ((int64_t)c * side + top) * side + left;
        uint8_t *one = scratch, *other = scratch + width + 2 * margin;
        for (int y = 0; y < height; y++, image += side) {
            memcpy(one + margin, image, width);
            for (int pass = 0; pass < 3; pass++) {
                memset(one, one[margin], margin);
                memset(one + margin + width, one[margin + width - 1], margin);
                (inner ? box_wide : box_narrow)(one + margin, other + margin, width, 1, whole, edge);
                uint8_t *swap = one; one = other; other = swap;
            }
            memcpy(image, one + margin, width);
        }
        image -= (int64_t)height * side;
        one = scratch, other = scratch + (height + 2 * margin) * width;
        for (int y = 0; y < height; y++) memcpy(one + (margin + y) * width, image + (int64_t)y * side, width);
        for (int pass = 0; pass < 3; pass++) {
            for (int k = 0; k < margin; k++) {
                memcpy(one + k * width, one + margin * width, width);
                memcpy(one + (margin + height + k) * width, one + (margin + height - 1) * width, width);
            }
            (inner ? box_wide : box_narrow)(one + margin * width, other + margin * width, height * width, width, whole,
                                            edge);
            uint8_t *swap = one; one = other; other = swap;
        }
        for (int y = 0; y < height; y++) memcpy(image + (int64_t)y * side, one + (margin + y) * width, width);
    }
    return 0;
}

/* How often each value occurs in each of the three planes of `count` pixels. */
void cosa_histogram(const uint8_t *planes, int count, int32_t *histogram)
{
    for (int c = 0; c < 3; c++, planes += count) {
        int32_t parts[4][256] = {{0}}; /* neighbours are often equal: counting them apart lets the sums overlap */
        int i = 0;
        for (; i + 4 <= count; i += 4)
            for (int part = 0; part < 4; part++) parts[part][planes[i + part]]++;
        for (; i < count; i++) parts[0][planes[i]]++;
        for (int value = 0; value < 256; value++)
            histogram[c * 256 + value] = parts[0][value] + parts[1][value] + parts[2][value] + parts[3][value];
    }
}

/* Replace each value by the one in its plane's table. */
void cosa_lookup(const uint8_t *restrict planes, int count, const uint8_t *restrict tables, uint8_t *restrict out)
{
    for (int c = 0; c < 3; c++, tables += 256, planes += count, out += count) {
        int i = 0;
        for (; i + 8 <= count; i += 8) {
            uint8_t found[8];
            for (int k = 0; k < 8; k++) found[k] = tables[planes[i + k]];
            memcpy(out + i, found, 8);
        }
        for (; i < count; i++) out[i] = tables[planes[i]];
    }
}

/* Grey values as Pillow converts RGB to L; returns their sum. */
FAST int64_t cosa_grey(const uint8_t *restrict planes, int count, uint8_t *restrict grey)
{
    int64_t total = 0;
    for (int i = 0; i < count; i++) {
        uint32_t value = planes[i] * 19595u + planes[count + i] * 38470u + planes[2 * count + i] * 7471u + 0x8000u;
        grey[i] = value >> 16;
        total += grey[i];
    }
    return total;
}

/* Pillow's SMOOTH filter of a plane: the mean of 3 x 3 pixels, the middle one five times; edges stay. */
FAST static void smooth(const uint8_t *restrict plane, int height, int width, uint8_t *restrict out)
{
    memcpy(out, plane, width);
    memcpy(out + (height - 1) * width, plane + (height - 1) * width, width);
    for (int y = 1; y < height - 1; y++) {
        const uint8_t *row = plane + y * width, *above = row - width, *below = row + width;
        uint8_t *target = out + y * width;
        for (int x = 1; x < width - 1; x++) {
            uint32_t sum = above[x - 1] + above[x] + above[x + 1] + row[x - 1] + 5u * row[x] + row[x + 1] +
                           below[x - 1] + below[x] + below[x + 1];
            target[x] = ((sum + 6) * 20165u) >> 18; /* (sum + 6) / 13, exact up to 13 * 255 + 6 */
        }
        target[0] = row[0];
        target[width - 1] = row[width - 1];
    }
}

FAST static void blend(const uint8_t *restrict from, const uint8_t *restrict to, int count, float factor,
                       uint8_t *restrict out)
{
    for (int i = 0; i < count; i++) {
        float value = (float)from[i] + factor * (float)((int)to[i] - (int)from[i]);
        value = value < 0.0f ? 0.0f : value > 255.0f ? 255.0f : value;
        out[i] = (uint8_t)(int)value;
    }
}

/* Blend each plane with a grey one: Pillow's ImageEnhance.Color, Contrast and Brightness. */
void cosa_blend(const uint8_t *grey, const uint8_t *planes, int count, float factor, uint8_t *out)
{
    for (int c = 0; c < 3; c++) blend(grey, planes + c * count, count, factor, out + c * count);
}

/* Turn values from `limit` on round, then keep the bits of `mask`: Pillow's solarize and posterize. */
FAST void cosa_fold(const uint8_t *restrict planes, int count, int limit, int mask, uint8_t *restrict out)
{
    for (int i = 0; i < 3 * count; i++) out[i] = (planes[i] < limit ? planes[i] : 255 - planes[i]) & mask;
}

/* Blend each square plane with its smooth self: Pillow's ImageEnhance.Sharpness. `plain` is scratch of a plane. */
void cosa_sharpness(const uint8_t *planes, int side, float factor, uint8_t *plain, uint8_t *out)
{
    int count = side * side;
    for (int c = 0; c < 3; c++) {
        smooth(planes + c * count, side, side, plain);
        blend(plain, planes + c * count, count, factor, out + c * count);
    }
}
