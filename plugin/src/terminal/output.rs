//! Where a picture goes: a terminal of some width, or a pipe.
use std::{
    env,
    io::{self, IsTerminal as _, Write},
};

use super::line::Line;

/// Characters in a line where no terminal and no `COLUMNS` says it.
const WIDTH: usize = 120;

/// What standard output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// Whether somebody looks at it as it is written.
    pub is_terminal: bool,
    /// Whether colours are wanted.
    pub coloured: bool,
    /// Characters in a line.
    pub width: usize,
}

impl Output {
    /// Standard output, in the present environment.
    pub fn standard(no_color: bool) -> Self {
        let is_terminal = io::stdout().is_terminal();
        let size = if is_terminal { crossterm::terminal::size().ok() } else { None };
        Self::of(is_terminal, size.map(|(columns, _)| usize::from(columns)), no_color, |name| {
            env::var(name).ok()
        })
    }

    /// Decides by what is known: `COLUMNS` counts without a terminal, `NO_COLOR` (not empty) and `TERM=dumb` forbid
    /// colours.
    fn of(
        is_terminal: bool,
        columns: Option<usize>,
        no_color: bool,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Self {
        let forbidden = no_color
            || variable("NO_COLOR").is_some_and(|value| !value.is_empty())
            || variable("TERM").is_some_and(|term| term == "dumb");
        let said = || variable("COLUMNS").and_then(|columns| columns.parse().ok());
        let width = columns.filter(|columns| *columns > 0).or_else(said).unwrap_or(WIDTH);
        Self { is_terminal, coloured: is_terminal && !forbidden, width }
    }
}

/// Writes lines, coloured or plain.
///
/// # Errors
/// When nobody reads them.
pub fn print(to: &mut impl Write, lines: &[Line], coloured: bool) -> io::Result<()> {
    for line in lines {
        if coloured {
            writeln!(to, "{}", line.coloured())?;
        } else {
            writeln!(to, "{}", line.plain())?;
        }
    }
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(is_terminal: bool, no_color: bool, variables: &[(&str, &str)]) -> Output {
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Output::of(is_terminal, is_terminal.then_some(90), no_color, variable)
    }

    #[test]
    fn colours_are_for_terminals_that_want_them() {
        assert!(output(true, false, &[]).coloured);
        assert!(output(true, false, &[("NO_COLOR", "")]).coloured);
        for refused in [
            output(false, false, &[]),
            output(true, true, &[]),
            output(true, false, &[("NO_COLOR", "1")]),
            output(true, false, &[("TERM", "dumb")]),
        ] {
            assert!(!refused.coloured, "{refused:?}");
        }
    }

    #[test]
    fn width_is_the_terminals_or_that_of_the_environment() {
        assert_eq!(output(true, false, &[("COLUMNS", "40")]).width, 90);
        assert_eq!(output(false, false, &[("COLUMNS", "40")]).width, 40);
        assert_eq!(output(false, false, &[("COLUMNS", "wide")]).width, WIDTH);
    }
}
