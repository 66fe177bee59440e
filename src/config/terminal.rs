//! What the terminal can show.

use std::io::{IsTerminal, stderr, stdin, stdout};

use super::environment::Environment;

/// Columns of a table where no terminal says how many there are.
const COLUMNS: usize = 100;
/// Narrower than this, a table wraps: nothing could be read in it.
const FEWEST: usize = 60;

/// How to show things, decided once at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Somebody types what standard input brings.
    pub typed_input: bool,
    /// Standard error is a terminal whose lines can be drawn over: progress is shown there.
    pub progress: bool,
    /// The log, on standard error, may have colours.
    pub color: bool,
    /// Columns of what is written to standard output.
    pub columns: usize,
}

impl Terminal {
    /// Of this process.
    #[must_use]
    pub fn of_process(environment: &Environment) -> Self {
        let width = || terminal_size::terminal_size_of(stdout()).map(|(width, _)| usize::from(width.0));
        let shown = stdout().is_terminal().then(width).flatten();
        Self { typed_input: stdin().is_terminal(), ..Self::new(environment, stderr().is_terminal(), shown) }
    }

    /// `error_is_terminal` is of standard error, `width` of the terminal that standard output is.
    fn new(environment: &Environment, error_is_terminal: bool, width: Option<usize>) -> Self {
        let drawn_over = error_is_terminal && !environment.dumb_terminal;
        Self {
            typed_input: false,
            progress: drawn_over,
            color: drawn_over && !environment.no_color,
            columns: environment.columns.or(width).unwrap_or(COLUMNS).max(FEWEST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_honoured() {
        let plain = Environment::default();
        let of = |environment: &Environment| Terminal::new(environment, true, Some(200));
        assert_eq!(of(&plain), Terminal { typed_input: false, progress: true, color: true, columns: 200 });
        let unseen = Terminal::new(&plain, false, None);
        assert_eq!((unseen.progress, unseen.color, unseen.columns), (false, false, 100));
        assert!(!of(&Environment { no_color: true, ..plain.clone() }).color);
        let dumb = of(&Environment { dumb_terminal: true, ..plain.clone() });
        assert!(!dumb.color && !dumb.progress);
        assert_eq!(of(&Environment { columns: Some(120), ..plain.clone() }).columns, 120);
        assert_eq!(of(&Environment { columns: Some(5), ..plain }).columns, FEWEST);
    }
}
