// Tables of text for a terminal: columns as wide as their widest cell, two blanks apart.
module;
#include <string>
#include <vector>
export module pagesaw.control.cli.table;

export namespace pagesaw {

class Table {
 public:
  explicit Table(std::vector<std::string> heads) : rows_{std::move(heads)} {}
  // A row may have fewer cells than there are heads.
  void AddRow(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  // Every row, heads first, each ending with a newline and without blanks before it.
  std::string Text() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace pagesaw
