module;
#include <string>
#include <string_view>
module pagesaw.control.cli.code_page;

namespace pagesaw {
namespace {

constexpr std::u16string_view kPictures = u" ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼";
constexpr std::u16string_view kUpperHalf =
    u"ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧"
    u"╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■ ";
static_assert(kPictures.size() == 0x20 && kUpperHalf.size() == 0x80);

char16_t Unicode(unsigned char code) {
  if (code < 0x20) return kPictures[code];
  if (code == 0x7f) return u'⌂';
  return code < 0x80 ? code : kUpperHalf[code - 0x80u];
}

}  // namespace

std::string CodePage437(unsigned char code) {
  const unsigned c = Unicode(code);
  if (c < 0x80) return {static_cast<char>(c)};
  if (c < 0x800) return {static_cast<char>(0xc0 | c >> 6), static_cast<char>(0x80 | (c & 0x3f))};
  return {static_cast<char>(0xe0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 0x3f)),
          static_cast<char>(0x80 | (c & 0x3f))};
}

}  // namespace pagesaw
