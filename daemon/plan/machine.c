#include "machine.h"

#include "address.h"
#include "file.h"

#include <jansson.h>
#include <string.h>

/* Peaks: NVIDIA's data sheets of the SXM and HGX forms; product_flops dense, NVLink one way, one 400 Gb/s
 * adapter a GPU. Shares: large products as cuBLAS reaches them; attention as FlashAttention-3 (Shah et al.
 * 2024) measures it, causal, head_dim 128; the rest bound by memory. */
#define SHARES_GPU                                                                                           \
    .products = .72, .attention_forward = .62, .attention_backward = .50, .streaming = .90, .links = .80

static const struct machine machines[] = {
    {.name = "h100",
     .title = "NVIDIA H100 SXM, 80 GB",
     .product_flops = 989e12,
     .memory_rate = 3.35e12,
     .link_rate = 450e9,
     .network_rate = 50e9,
     .memory_bytes = 80000000000,
     .ranks_a_host = 8,
     .overlaps = true,
     SHARES_GPU},
    {.name = "h200",
     .title = "NVIDIA H200 SXM, 141 GB",
     .product_flops = 989e12,
     .memory_rate = 4.8e12,
     .link_rate = 450e9,
     .network_rate = 50e9,
     .memory_bytes = 141000000000,
     .ranks_a_host = 8,
     .overlaps = true,
     SHARES_GPU},
    {.name = "b200",
     .title = "NVIDIA B200 (HGX), 180 GB",
     .product_flops = 2250e12,
     .memory_rate = 7.7e12,
     .link_rate = 900e9,
     .network_rate = 50e9,
     .memory_bytes = 180000000000,
     .ranks_a_host = 8,
     .overlaps = true,
     SHARES_GPU},
};
enum { MACHINES = sizeof machines / sizeof machines[0] };

bool machine_find(struct machine *machine, const char *name, struct err *err)
{
    const char *names[MACHINES];
    for (int i = 0; i < MACHINES; i++) {
        names[i] = machines[i].name;
        if (strcmp(name, names[i]) != 0)
            continue;
        *machine = machines[i];
        return true;
    }
    const char *nearest = err_nearest(name, names, MACHINES);
    err_set(err, ERR_INVALID, "'%s' is no machine that plans can be made for", name);
    return err_hint(err, "%s%s: cpu (this host), h100, h200 and b200 are there",
                    nearest ? "did you mean " : "", nearest ? nearest : "use one that is known");
}

/* Ranks of a host share its cores and its memory. A message goes through memory shared between processes:
 * copied in and copied out, so that every byte is read and written twice. */
bool machine_here(struct machine *machine, int32_t ranks_here, struct err *err)
{
    char path[LIMIT_PATH_BYTES], folder[LIMIT_PATH_BYTES];
    if (!address_state_folder(folder, err) || !file_join(path, sizeof path, folder, "doctor.json", err))
        return false;
    json_t *json = json_load_file(path, 0, NULL);
    double flops = json_number_value(json_object_get(json, "product_flops"));
    double copy = json_number_value(json_object_get(json, "copy_bytes_per_second"));
    json_decref(json);
    if (flops <= 0 || copy <= 0) {
        err_set(err, ERR_NOT_FOUND, "how long a step takes here is not known");
        err_why(err, "nobody has measured this host's products and copies");
        return err_hint(err, "trainctl doctor does; or plan for another machine: --machine h100");
    }
    *machine = (struct machine){.name = "cpu",
                                .title = "this host's CPU, as doctor measured it",
                                .product_flops = flops / ranks_here,
                                .memory_rate = copy / ranks_here,
                                .link_rate = copy / 4 / ranks_here,
                                .network_rate = 1e9,
                                .ranks_a_host = ranks_here,
                                .products = .95,
                                .attention_forward = .70, /* as tests/bench finds it */
                                .attention_backward = .70,
                                .streaming = .90,
                                .links = .80};
    return true;
}
