#include "extensions.h"

#include <algorithm>
#include <atomic>

#ifdef RECURRA_EXTENSIONS
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace recurra {

static std::atomic<Index> most{tiles};

#ifdef RECURRA_EXTENSIONS
// A process may use tiles once it has asked: their registers are too large for every thread to have them saved.
static bool tiles_permitted() {
    constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request, tile_data) == 0;
}

static Extension found(Format format) {
    unsigned basic[4] = {}, more[4] = {};  // eax, ebx, ecx, edx
    __get_cpuid_count(7, 0, basic, basic + 1, basic + 2, basic + 3);
    __get_cpuid_count(7, 1, more, more + 1, more + 2, more + 3);
    const bool has_dots = format == integers ? basic[2] >> 11 & 1 : more[0] >> 5 & 1;
    const bool has_tiles = basic[3] >> 24 & 1 && basic[3] >> (format == integers ? 25 : 22) & 1;
    return has_tiles && has_dots && tiles_permitted() ? tiles : has_dots ? dots : none;
}
#endif

Extension extension(Format format) {
#ifdef RECURRA_EXTENSIONS
    static const Extension of_integers = found(integers), of_bfloats = found(bfloats);
    const Extension highest = format == integers ? of_integers : of_bfloats;
    return static_cast<Extension>(std::min<Index>(highest, most));
#else
    (void)format;
    return none;
#endif
}

}  // namespace recurra

extern "C" {

// What products with matrices of a format use: 0 nothing beyond the library's own instructions, 1 dots, 2 tiles.
recurra::Index recurra_extension(recurra::Index format) {
    return recurra::extension(static_cast<recurra::Format>(format));
}

// Let no product use more than this, to test and to measure what other CPUs would do.
void recurra_limit_extensions(recurra::Index highest) { recurra::most = highest; }
}
