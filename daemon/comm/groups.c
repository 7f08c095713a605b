#include "groups.h"

bool groups_init(struct groups *groups, const struct comm *world, const struct layout *layout,
                 struct err *err)
{
    struct layout_place at = layout_place(layout, world->rank);
    *groups = (struct groups){.layout = *layout, .place = at};
    const struct {
        struct comm *group;
        const char *axis;
        int32_t color, key;
    } rows[] = {
        {&groups->shard, "dc", at.t + layout->t * at.p, at.c + layout->c * at.d},
        {&groups->tensor, "t", world->rank / layout->t, at.t},
        {&groups->context, "c", at.t + layout->t * (at.d + layout->d * at.p), at.c},
        {&groups->pipeline, "p", at.t + layout->t * (at.c + layout->c * at.d), at.p},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (!comm_split(rows[i].group, world, rows[i].axis, rows[i].color, rows[i].key, err)) {
            groups_done(groups);
            return false;
        }
    return true;
}

void groups_done(struct groups *groups)
{
    comm_part(&groups->shard);
    comm_part(&groups->tensor);
    comm_part(&groups->context);
    comm_part(&groups->pipeline);
}
