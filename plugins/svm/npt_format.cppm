// The page format of nested paging (NPT): that of legacy paging, judged as a second stage.
module;
#include <cstdint>
export module pagesaw.plugins.svm.npt_format;

import pagesaw.core.page_format;

export namespace pagesaw::svm {

// 4-level or 5-level nested tables, every access to which is a user's.
// [amd/vol2] "Nested Paging"
PageFormat MakeNptFormat(unsigned physical_bits);

}  // namespace pagesaw::svm
