// A prototype, for compiled_maxsim.py: of each document and query token the largest product and its position (AVX2).
// panels: (query tokens / 16, dim, 16), aligned; docs: (rows, dim); best, pos: (documents, query tokens).
#include <immintrin.h>

#include <cstdint>

extern "C" void maxsim_forward(const float* panels, int64_t n_panels, int64_t dim, const float* docs,
                    const int64_t* starts, const int64_t* lengths, int64_t n_docs, float* best, uint8_t* pos) {
  const int64_t q = n_panels * 16;
  for (int64_t d = 0; d < n_docs; ++d) {
    const float* doc = docs + starts[d] * dim; const int64_t L = lengths[d];
    for (int64_t p = 0; p < n_panels; ++p) {
      const float* panel = panels + p * dim * 16;
      __m256 b0 = _mm256_set1_ps(-1e30f), b1 = b0;
      __m256i p0 = _mm256_setzero_si256(), p1 = p0;
      int64_t r = 0;
      for (; r < L; r += 6) {
        const float* rows[6];
        for (int i = 0; i < 6; ++i) rows[i] = doc + (r + i < L ? r + i : L - 1) * dim;
        __m256 a00=_mm256_setzero_ps(),a01=a00,a10=a00,a11=a00,a20=a00,a21=a00,a30=a00,a31=a00,a40=a00,a41=a00,a50=a00,a51=a00;
        for (int64_t k = 0; k < dim; ++k) {
          __m256 x0 = _mm256_load_ps(panel + k * 16), x1 = _mm256_load_ps(panel + k * 16 + 8);
          __m256 v;
          v=_mm256_broadcast_ss(rows[0]+k); a00=_mm256_fmadd_ps(v,x0,a00); a01=_mm256_fmadd_ps(v,x1,a01);
          v=_mm256_broadcast_ss(rows[1]+k); a10=_mm256_fmadd_ps(v,x0,a10); a11=_mm256_fmadd_ps(v,x1,a11);
          v=_mm256_broadcast_ss(rows[2]+k); a20=_mm256_fmadd_ps(v,x0,a20); a21=_mm256_fmadd_ps(v,x1,a21);
          v=_mm256_broadcast_ss(rows[3]+k); a30=_mm256_fmadd_ps(v,x0,a30); a31=_mm256_fmadd_ps(v,x1,a31);
          v=_mm256_broadcast_ss(rows[4]+k); a40=_mm256_fmadd_ps(v,x0,a40); a41=_mm256_fmadd_ps(v,x1,a41);
          v=_mm256_broadcast_ss(rows[5]+k); a50=_mm256_fmadd_ps(v,x0,a50); a51=_mm256_fmadd_ps(v,x1,a51);
        }
#define UP(i, A, B) { __m256i n=_mm256_set1_epi32((int)(r+i)); \
  __m256 g=_mm256_cmp_ps(A,b0,_CMP_GT_OQ); b0=_mm256_blendv_ps(b0,A,g); p0=_mm256_blendv_epi8(p0,n,_mm256_castps_si256(g)); \
  g=_mm256_cmp_ps(B,b1,_CMP_GT_OQ); b1=_mm256_blendv_ps(b1,B,g); p1=_mm256_blendv_epi8(p1,n,_mm256_castps_si256(g)); }
        UP(0,a00,a01) UP(1,a10,a11) UP(2,a20,a21) UP(3,a30,a31) UP(4,a40,a41) UP(5,a50,a51)
      }
      float* o = best + d * q + p * 16; _mm256_storeu_ps(o, b0); _mm256_storeu_ps(o + 8, b1);
      alignas(32) int32_t t[16]; _mm256_store_si256((__m256i*)t, p0); _mm256_store_si256((__m256i*)(t + 8), p1);
      uint8_t* u = pos + d * q + p * 16; for (int i = 0; i < 16; ++i) u[i] = (uint8_t)(t[i] < L ? t[i] : L - 1);
    }
  }
}
