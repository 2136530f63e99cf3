//! Tables for people. On a terminal, cells wrap between words; in a pipe or a file nothing is wrapped and nothing is cut, so
//! that `grep` finds whole lines.

/// Blanks between two columns.
const GAP: usize = 2;
/// A column is not made narrower than this: "23h 59m" stays one line.
const SHORT: usize = 12;

/// Rows of cells under a heading. A cell with line ends has several lines.
#[derive(Debug, Clone)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(heading: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Self {
        let heading = heading.iter().map(|&name| name.to_owned()).collect();
        Self { rows: std::iter::once(heading).chain(rows).collect() }
    }

    /// The lines, within so many columns where a width is given. A word is never broken: one that is wider than its column
    /// makes its line longer.
    pub(super) fn lines(&self, width: Option<usize>) -> String {
        let widths = self.widths(width);
        self.rows.iter().map(|row| line(row, &widths)).collect()
    }

    fn widths(&self, width: Option<usize>) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let widest = |column: usize, parts: fn(&str) -> Vec<&str>| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.flat_map(|cell| parts(cell)).map(length).max().unwrap_or_default()
        };
        let mut widths: Vec<_> = (0..columns).map(|column| widest(column, |c| c.lines().collect())).collect();
        let Some(width) = width else { return widths };
        let words = (0..columns).map(|column| widest(column, |c| c.split_whitespace().collect()));
        let least: Vec<_> = words.zip(&widths).map(|(word, width)| word.max(SHORT.min(*width))).collect();
        let gaps = GAP * columns.saturating_sub(1);
        loop {
            let excess = (widths.iter().sum::<usize>() + gaps).saturating_sub(width);
            // The widest column that can still give way.
            let wide = (0..columns).filter(|&n| widths[n] > least[n]).max_by_key(|&n| widths[n]);
            match wide {
                Some(n) if excess > 0 => {
                    let next = (0..columns).filter(|&m| m != n).map(|m| widths[m]).max().unwrap_or_default();
                    let floor = least[n].max(next.min(widths[n] - 1));
                    widths[n] = floor.max(widths[n].saturating_sub(excess));
                }
                _ => return widths,
            }
        }
    }
}

/// One row as lines.
fn line(row: &[String], widths: &[usize]) -> String {
    let cells: Vec<Vec<String>> = row.iter().zip(widths).map(|(cell, width)| wrap(cell, *width)).collect();
    let height = cells.iter().map(Vec::len).max().unwrap_or_default().max(1);
    let mut out = String::new();
    for n in 0..height {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            let part = cell.get(n).map_or("", String::as_str);
            text.push_str(part);
            text.extend(std::iter::repeat_n(' ', (width + GAP).saturating_sub(length(part)).max(1)));
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

/// The text in lines of at most so many characters, broken between words only.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    text.lines().flat_map(|line| wrap_line(line, width)).collect()
}

fn wrap_line(line: &str, width: usize) -> Vec<String> {
    if length(line) <= width {
        return vec![line.to_owned()];
    }
    let mut lines = vec![String::new()];
    for word in line.split_whitespace() {
        let last =
            lines.last_mut().filter(|last| last.is_empty() || length(last) + 1 + length(word) <= width);
        match last {
            Some(last) => {
                if !last.is_empty() {
                    last.push(' ');
                }
                last.push_str(word);
            }
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

fn length(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMEDY: &str =
        "the forward chain of table inet filter drops it: nft insert rule inet filter forward accept";

    fn table() -> Table {
        let rows = [
            vec!["10.42.7.0/24".to_owned(), "node-7".to_owned(), REMEDY.to_owned()],
            vec!["10.42.8.0/24\nfd42::/64".to_owned(), "a-node-with-a-long.name.example.com".to_owned()],
        ];
        Table::new(&["SUBNET", "NODE", "REASON"], rows)
    }

    #[test]
    fn in_a_pipe_nothing_is_cut_or_wrapped() {
        let text = table().lines(None);
        assert!(text.lines().any(|line| line.ends_with(REMEDY)), "{text}");
        assert_eq!(text.lines().count(), 4, "{text}");
    }

    #[test]
    fn on_a_terminal_cells_wrap_between_words_and_fit() {
        for width in [72, 80, 100, 132] {
            let text = table().lines(Some(width));
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}:\n{text}");
            for word in REMEDY.split_whitespace().chain(["a-node-with-a-long.name.example.com"]) {
                assert!(text.split_whitespace().any(|found| found == word), "{word} at {width}:\n{text}");
            }
        }
        assert_eq!(table().lines(Some(400)), table().lines(None));
    }

    #[test]
    fn a_terminal_that_is_too_narrow_for_a_word_breaks_no_word() {
        let text = table().lines(Some(20));
        assert!(text.contains("a-node-with-a-long.name.example.com"), "{text}");
    }

    #[test]
    fn the_columns_stand_below_each_other() {
        let text = table().lines(None);
        let column = |line: &str, word: &str| line.find(word);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(column(lines[0], "NODE"), column(lines[1], "node-7"));
        assert_eq!(column(lines[0], "REASON"), column(lines[1], "the forward"));
    }
}
