// llama.cpp (ggml-cpu) peer: the routed part of one MoE layer as build_moe_ffn builds it:
// mul_mat_id(gate), mul_mat_id(up), swiglu, mul_mat_id(down), weighted sum. Fresh routing per call.
// Usage: llama_moe <mxfp4|q4_0|q8_0|bf16> <threads> <idsdir> <repack 0|1>
// stdin: "moe <tokens> <reps>" | "dense <tokens> <reps>" (4096x4096 of the same type, 16 copies in turn)
#include "ggml.h"
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>
static const int64_t H = 4096, I = 2048, K = 6;
static double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
static uint64_t s_ = 88172645463325252ULL;
static uint64_t rnd() { s_ ^= s_ << 13; s_ ^= s_ >> 7; s_ ^= s_ << 17; return s_; }
static float frnd() { return (float)((int64_t)(rnd() >> 11) / 9007199254740992.0 - 0.5); }
static std::vector<int32_t> load(const std::string &f) {
  std::vector<int32_t> v; FILE *h = fopen(f.c_str(), "rb"); fseek(h, 0, SEEK_END); v.resize(ftell(h) / 4); rewind(h);
  if (fread(v.data(), 4, v.size(), h) != v.size()) abort(); fclose(h); return v;
}
int main(int argc, char **argv) {
  std::string ty = argv[1], dir = argv[3]; int th = atoi(argv[2]); bool repack = atoi(argv[4]);
  ggml_type T = ty == "mxfp4" ? GGML_TYPE_MXFP4 : ty == "q4_0" ? GGML_TYPE_Q4_0 : ty == "q8_0" ? GGML_TYPE_Q8_0 : GGML_TYPE_BF16;
  int64_t E = T == GGML_TYPE_BF16 ? 64 : T == GGML_TYPE_Q8_0 ? 128    : 256;
  if (getenv("EXPERTS")) E = atoi(getenv("EXPERTS"));
  double bpw = (double)ggml_type_size(T) / ggml_blck_size(T);
  ggml_backend_t be = ggml_backend_cpu_init();
  ggml_backend_cpu_set_n_threads(be, th);
  ggml_threadpool_params tp = ggml_threadpool_params_default(th); ggml_threadpool *pool = ggml_threadpool_new(&tp);
  ggml_backend_cpu_set_threadpool(be, pool);
  ggml_backend_dev_t dev = ggml_backend_get_device(be);
  ggml_backend_buffer_type_t bt = ggml_backend_get_default_buffer_type(be); std::string btn = "default";
  if (repack) {
    auto fn = (ggml_backend_dev_get_extra_bufts_t)ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev), "ggml_backend_dev_get_extra_bufts");
    for (auto *p = fn ? fn(dev) : nullptr; p && *p; p++) if (std::string(ggml_backend_buft_name(*p)).find("REPACK") != std::string::npos) { bt = *p; btn = ggml_backend_buft_name(*p); }
  }
  auto alloc = [&](ggml_context *c) { auto *b = ggml_backend_alloc_ctx_tensors_from_buft(c, bt); ggml_backend_buffer_set_usage(b, GGML_BACKEND_BUFFER_USAGE_WEIGHTS); };
  auto fill = [&](ggml_tensor *t) {
    // one random matrix per tensor quantised once, tiled over the experts with distinct memory
    int64_t rows = t->ne[1], k = t->ne[0]; size_t mat = ggml_row_size(T, k) * rows;
    std::vector<float> f(rows * k); for (auto &x : f) x = frnd() * .07f;
    std::vector<char> q(mat * t->ne[2]); ggml_quantize_chunk(T, f.data(), q.data(), 0, rows, k, nullptr);
    for (int64_t e = 1; e < t->ne[2]; e++) memcpy(q.data() + mat * e, q.data(), mat);
    ggml_backend_tensor_set(t, q.data(), 0, q.size());
  };
  ggml_context *cw = ggml_init({ggml_tensor_overhead() * 64, nullptr, true});
  ggml_tensor *wg = ggml_new_tensor_3d(cw, T, H, I, E), *wu = ggml_new_tensor_3d(cw, T, H, I, E), *wd = ggml_new_tensor_3d(cw, T, I, H, E);
  alloc(cw); fill(wg); fill(wu); fill(wd);
  ggml_context *cd = nullptr; std::vector<ggml_tensor *> dw;
  printf("{\"ready\":1,\"experts\":%ld,\"buft\":\"%s\"}\n", (long)E, btn.c_str()); fflush(stdout);
  struct G { ggml_context *c; ggml_cgraph *g; ggml_gallocr_t al; ggml_tensor *x, *ids, *w; std::vector<int32_t> routing; int cnt; };
  std::map<int, G> gs; char line[128]; int tk, reps;
  while (fgets(line, sizeof line, stdin)) {
    if (sscanf(line, "moe %d %d", &tk, &reps) == 2) {
      if (!gs.count(tk)) {
        G g{}; g.c = ggml_init({ggml_tensor_overhead() * 256 + ggml_graph_overhead(), nullptr, true});
        g.x = ggml_new_tensor_3d(g.c, GGML_TYPE_F32, H, 1, tk); g.ids = ggml_new_tensor_2d(g.c, GGML_TYPE_I32, K, tk); g.w = ggml_new_tensor_3d(g.c, GGML_TYPE_F32, 1, K, tk);
        ggml_set_input(g.x); ggml_set_input(g.ids); ggml_set_input(g.w);
        auto *up = ggml_mul_mat_id(g.c, wu, g.x, g.ids), *ga = ggml_mul_mat_id(g.c, wg, g.x, g.ids);
        auto *h = ggml_swiglu_split(g.c, ga, up);
        auto *d = ggml_mul(g.c, ggml_mul_mat_id(g.c, wd, h, g.ids), g.w);
        ggml_tensor *y = nullptr;
        for (int i = 0; i < K; i++) { auto *v = ggml_view_2d(g.c, d, H, tk, d->nb[2], i * d->nb[1]); y = y ? ggml_add(g.c, y, v) : v; }
        ggml_set_output(y); g.g = ggml_new_graph(g.c); ggml_build_forward_expand(g.g, y);
        g.al = ggml_gallocr_new(ggml_backend_get_default_buffer_type(be)); ggml_gallocr_alloc_graph(g.al, g.g);
        g.routing = load(dir + "/ids_" + std::to_string(E) + "_" + std::to_string(tk) + ".bin"); gs[tk] = g;
      }
      G &g = gs[tk]; int sets = g.routing.size() / (tk * K);
      std::vector<float> x(H * tk), w(K * tk, 1.f / K); for (auto &v : x) v = frnd() * .1f;
      std::string ms, by; bool warm = tk <= 64;
      for (int r = warm ? -1 : 0; r < reps; r++) {
        int s = (g.cnt + (r < 0 ? sets - 1 : r)) % sets; const int32_t *id = g.routing.data() + (size_t)s * tk * K;
        ggml_backend_tensor_set(g.x, x.data(), 0, x.size() * 4); ggml_backend_tensor_set(g.w, w.data(), 0, w.size() * 4); ggml_backend_tensor_set(g.ids, id, 0, tk * K * 4);
        double t = now(); ggml_backend_graph_compute(be, g.g); t = now() - t;
        if (r < 0) continue;
        std::set<int32_t> u(id, id + tk * K); char b[64]; snprintf(b, 64, "%s%.5f", r ? "," : "", t * 1e3); ms += b; snprintf(b, 64, "%s%.0f", r ? "," : "", u.size() * 3.0 * H * I * bpw); by += b;
      }
      g.cnt += reps;
      printf("{\"ms\":[%s],\"bytes\":[%s],\"flops\":%.0f}\n", ms.c_str(), by.c_str(), 2.0 * 3 * H * I * K * tk);
    } else if (sscanf(line, "dense %d %d", &tk, &reps) == 2) {
      if (!cd) { cd = ggml_init({ggml_tensor_overhead() * 64, nullptr, true}); for (int i = 0; i < 16; i++) dw.push_back(ggml_new_tensor_2d(cd, T, H, H)); alloc(cd); for (auto *t : dw) fill(t); }
      std::string ms, by;
      for (int r = -1; r < reps; r++) {
        ggml_context *c = ggml_init({ggml_tensor_overhead() * 16 + ggml_graph_overhead(), nullptr, true});
        auto *x = ggml_new_tensor_2d(c, GGML_TYPE_F32, H, tk); ggml_set_input(x); auto *y = ggml_mul_mat(c, dw[(r + 1) % 16], x);
        auto *g = ggml_new_graph(c); ggml_build_forward_expand(g, y); auto *al = ggml_gallocr_new(ggml_backend_get_default_buffer_type(be)); ggml_gallocr_alloc_graph(al, g);
        std::vector<float> xv(H * tk); for (auto &v : xv) v = frnd() * .1f; ggml_backend_tensor_set(x, xv.data(), 0, xv.size() * 4);
        memset(y->data, 0, ggml_nbytes(y));
        double t = now(); ggml_backend_graph_compute(be, g); t = now() - t;
        ggml_gallocr_free(al); ggml_free(c); if (r < 0) continue;
        char b[64]; snprintf(b, 64, "%s%.5f", r ? "," : "", t * 1e3); ms += b; snprintf(b, 64, "%s%.0f", r ? "," : "", H * H * bpw); by += b;
      }
      printf("{\"ms\":[%s],\"bytes\":[%s],\"flops\":%.0f}\n", ms.c_str(), by.c_str(), 2.0 * H * H * tk);
    }
    fflush(stdout);
  }
}
