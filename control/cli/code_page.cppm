// The characters of a PC's text mode.
module;
#include <string>
export module pagesaw.control.cli.code_page;

export namespace pagesaw {

// Character `code` of code page 437 as UTF-8, by what the screen shows: 0 and FFh are blanks, and
// control characters have pictures.
std::string CodePage437(unsigned char code);

}  // namespace pagesaw
