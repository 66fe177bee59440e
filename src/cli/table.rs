//! Tables for people.

use std::io::Write;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Blanks between two columns.
const GAP: usize = 2;
/// A column is not made narrower than this.
const NARROWEST: usize = 8;

/// Left-aligned columns, two blanks apart, as wide as their widest cell, or narrower where the table has to fit.
pub struct Table<const N: usize> {
    rows: Vec<[String; N]>,
    limit: Option<usize>,
    elastic: Vec<usize>,
}

impl<const N: usize> Table<N> {
    /// A table with this head.
    #[must_use]
    pub fn new(head: [&str; N]) -> Self {
        Self { rows: vec![head.map(str::to_owned)], limit: None, elastic: Vec::new() }
    }

    /// Fit it into so many columns of the terminal: the widest of these columns gives way first, and a cell too wide
    /// for its column loses its middle.
    #[must_use]
    pub fn fit(self, limit: usize, elastic: &[usize]) -> Self {
        Self { limit: Some(limit), elastic: elastic.to_vec(), ..self }
    }

    /// Add a row.
    pub fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    fn widths(&self) -> [usize; N] {
        let width = |column: usize| self.rows.iter().map(|row| row[column].width()).max().unwrap_or(0);
        let mut widths: [usize; N] = std::array::from_fn(width);
        let Some(limit) = self.limit else { return widths };
        while widths.iter().sum::<usize>() + GAP * N.saturating_sub(1) > limit {
            let wide = self.elastic.iter().copied().filter(|column| *column < N && widths[*column] > NARROWEST);
            // The first of the widest.
            let Some(widest) = wide.rev().max_by_key(|column| widths[*column]) else { break };
            widths[widest] -= 1;
        }
        widths
    }

    /// Write it.
    ///
    /// # Errors
    /// The writer's.
    pub fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        let widths = self.widths();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(widths) {
                let cell = elided(cell, width);
                line.push_str(&cell);
                line.push_str(&" ".repeat(width - cell.width() + GAP));
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// At most so many columns wide: the middle gives way to one `…`, since a beginning and an end say most.
fn elided(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let room = width.saturating_sub(1);
    let head = taken(text.chars(), room - room / 2);
    let tail: String = taken(text.chars().rev(), room / 2).chars().rev().collect();
    format!("{head}…{tail}")
}

fn taken(characters: impl Iterator<Item = char>, mut room: usize) -> String {
    let fits = |character: &char| {
        let width = character.width().unwrap_or(0);
        let fits = width <= room;
        room = room.saturating_sub(width);
        fits
    };
    characters.take_while(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written<const N: usize>(table: &Table<N>) -> String {
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["NAME", "KIND"]);
        table.row(["sql".into(), "LoRA".into()]);
        table.row(["übersetzer".into(), "IA3".into()]);
        table.row(["翻訳".into(), "DoRA".into()]);
        assert_eq!(written(&table), "NAME        KIND\nsql         LoRA\nübersetzer  IA3\n翻訳        DoRA\n");
    }

    #[test]
    fn a_table_that_has_to_fit_loses_the_middle_of_its_widest_cells() {
        let mut table = Table::new(["A", "B", "C"]).fit(40, &[1, 2]);
        table.row(["fixed".into(), "0123456789012345678901234567890123456789".into(), "short".into()]);
        table.row(["fixed".into(), "翻訳翻訳翻訳翻訳翻訳翻訳翻訳翻訳翻訳翻訳".into(), "short".into()]);
        let text = written(&table);
        assert!(text.lines().all(|line| line.width() <= 40), "{text}");
        assert!(text.contains("0123456789012…890123456789  short"), "{text}");
    }

    #[test]
    fn a_cell_is_never_wider_than_asked_for() {
        for width in 0..12 {
            assert!(elided("ab翻訳cd訳翻xy", width).width() <= width.max(1), "{width}");
        }
        assert_eq!(elided("abc", 3), "abc");
    }
}
