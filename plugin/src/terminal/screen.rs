//! The whole terminal: a picture that is drawn anew in place, and the keys that move around in it.
use std::{
    future::Future,
    io::{self, Write as _},
    pin::pin,
};

use crossterm::{
    QueueableCommand as _, cursor,
    event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
    terminal::{
        self, BeginSynchronizedUpdate, Clear, ClearType, EndSynchronizedUpdate, EnterAlternateScreen,
        LeaveAlternateScreen,
    },
};
use futures::StreamExt as _;

use super::line::{Line, Style, flow};
use crate::{
    error::describe,
    picture::{text::Options, units::clean},
};

/// How waiting on the screen ended.
#[derive(Debug)]
pub enum Choice<T> {
    /// What was waited for is here.
    Goes(T),
    /// The person has seen enough.
    Quit,
}

/// The terminal as long as it is ours; dropped, it is as it was before.
pub struct Screen {
    events: EventStream,
    state: State,
    coloured: bool,
}

/// Where in the picture the person is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    /// First line that is shown.
    top: usize,
    /// The layer that is shown; all together without one.
    layer: Option<u32>,
    /// Layers that there are.
    layers: u32,
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Quit,
    Move(isize),
    Top,
    Bottom,
    NextLayer,
    PreviousLayer,
    AllLayers,
}

impl Screen {
    /// Takes the terminal. `layer`: what is shown first.
    ///
    /// # Errors
    /// If it is none.
    pub fn open(coloured: bool, layer: Option<u32>) -> io::Result<Self> {
        terminal::enable_raw_mode()?;
        // from here on, dropping gives the terminal back
        let screen =
            Self { events: EventStream::new(), state: State { layer, ..State::default() }, coloured };
        io::stdout().queue(EnterAlternateScreen)?.queue(cursor::Hide)?.flush()?;
        Ok(screen)
    }

    /// How many layers there are to choose from.
    pub fn layers(&mut self, layers: u32) {
        self.state.layers = layers;
    }

    /// Shows what `draw` makes of the width and the chosen layer, and follows the keys, until `work` is done.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub async fn show_until<T>(
        &mut self,
        draw: impl Fn(Options, Option<u32>) -> Vec<Line>,
        work: impl Future<Output = T>,
    ) -> io::Result<Choice<T>> {
        let mut work = pin!(work);
        loop {
            let page = self.show(&draw)?;
            tokio::select! {
                done = &mut work => return Ok(Choice::Goes(done)),
                event = self.events.next() => match event {
                    None => return Ok(Choice::Quit),
                    Some(Err(error)) => return Err(error),
                    Some(Ok(event)) => match action(&event, page) {
                        Some(Action::Quit) => return Ok(Choice::Quit),
                        Some(action) => self.state = self.state.after(action),
                        // another size, or a key that means nothing: draw
                        None => (),
                    },
                },
            }
        }
    }

    /// Draws; returns how many lines of the picture fit.
    fn show(&mut self, draw: impl Fn(Options, Option<u32>) -> Vec<Line>) -> io::Result<usize> {
        let (width, height) = terminal::size()?;
        let (width, height) = (usize::from(width.max(1)), usize::from(height.max(2)));
        let page = height - 1;
        let lines = draw(Options { width, coloured: self.coloured }, self.state.layer);
        self.state.top = self.state.top.min(lines.len().saturating_sub(page));
        let mut out = io::stdout().lock();
        out.queue(BeginSynchronizedUpdate)?.queue(cursor::MoveTo(0, 0))?;
        for line in lines.iter().skip(self.state.top).take(page) {
            let line = line.clone().clipped(width);
            let text = if self.coloured { line.coloured() } else { line.plain() };
            out.write_all(text.as_bytes())?;
            // a line as wide as the terminal leaves the cursor on its last character, which must stay
            if line.width() < width {
                out.queue(Clear(ClearType::UntilNewLine))?;
            }
            out.write_all(b"\r\n")?;
        }
        out.queue(Clear(ClearType::FromCursorDown))?;
        let footer = self.state.footer(lines.len(), page).clipped(width);
        let text = if self.coloured { footer.coloured() } else { footer.plain() };
        out.queue(cursor::MoveTo(0, u16::try_from(page).unwrap_or(u16::MAX)))?;
        out.write_all(text.as_bytes())?;
        out.queue(EndSynchronizedUpdate)?;
        out.flush()?;
        Ok(page)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = io::stdout().lock();
        // a terminal that is gone needs nothing back
        let _ = out
            .queue(LeaveAlternateScreen)
            .and_then(|out| out.queue(cursor::Show))
            .and_then(io::Write::flush)
            .and_then(|()| terminal::disable_raw_mode());
    }
}

impl State {
    fn after(self, action: Action) -> Self {
        let last = self.layers.checked_sub(1);
        match action {
            Action::Quit => self,
            Action::Move(lines) => Self { top: self.top.saturating_add_signed(lines), ..self },
            Action::Top => Self { top: 0, ..self },
            // more than there is: drawing knows the end
            Action::Bottom => Self { top: usize::MAX / 2, ..self },
            Action::AllLayers => Self { layer: None, ..self },
            Action::NextLayer => Self {
                layer: last
                    .map(|last| self.layer.map_or(0, |layer| if layer >= last { 0 } else { layer + 1 })),
                ..self
            },
            Action::PreviousLayer => Self {
                layer: last.map(|last| self.layer.and_then(|l| l.checked_sub(1)).unwrap_or(last)),
                ..self
            },
        }
    }

    fn footer(self, lines: usize, page: usize) -> Line {
        let mut line = Line::default().with("q quit", Style::STRONG);
        if self.layers > 0 {
            let layer = self.layer.map_or("all".to_owned(), |layer| layer.to_string());
            line.push(format!("  [ ] layer: {layer}  a all"), Style::FAINT);
        }
        if lines > page {
            let last = (self.top + page).min(lines);
            line.push(format!("  arrows: lines {}-{last} of {lines}", self.top + 1), Style::FAINT);
        }
        line
    }
}

fn action(event: &Event, page: usize) -> Option<Action> {
    let Event::Key(KeyEvent { code, modifiers, kind, .. }) = event else { return None };
    if *kind == KeyEventKind::Release {
        return None;
    }
    let page = isize::try_from(page.saturating_sub(1).max(1)).unwrap_or(isize::MAX);
    match code {
        KeyCode::Char('c' | 'd') if modifiers.contains(KeyModifiers::CONTROL) => Some(Action::Quit),
        KeyCode::Char('q') | KeyCode::Esc => Some(Action::Quit),
        KeyCode::Up | KeyCode::Char('k') => Some(Action::Move(-1)),
        KeyCode::Down | KeyCode::Char('j') => Some(Action::Move(1)),
        KeyCode::PageUp => Some(Action::Move(-page)),
        KeyCode::PageDown | KeyCode::Char(' ') => Some(Action::Move(page)),
        KeyCode::Home | KeyCode::Char('g') => Some(Action::Top),
        KeyCode::End | KeyCode::Char('G') => Some(Action::Bottom),
        KeyCode::Char(']') | KeyCode::Right => Some(Action::NextLayer),
        KeyCode::Char('[') | KeyCode::Left => Some(Action::PreviousLayer),
        KeyCode::Char('a') => Some(Action::AllLayers),
        _ => None,
    }
}

/// What stands above a picture that is out of date: the next look may go better.
pub fn trouble(error: &anyhow::Error, since: &str, width: usize) -> Vec<Line> {
    let why = Line::default().with(clean(&describe(error.as_ref())), Style::BAD);
    let age = Line::default().with(format!("Below is what was seen at {since}."), Style::NOTE);
    let mut lines = flow(vec![why, age], width, 2);
    lines.push(Line::default());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(code: KeyCode) -> Option<Action> {
        action(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE)), 20)
    }

    #[test]
    fn keys() {
        assert_eq!(key(KeyCode::Char('q')), Some(Action::Quit));
        assert_eq!(key(KeyCode::PageDown), Some(Action::Move(19)));
        assert_eq!(key(KeyCode::Char('z')), None);
        let control = Event::Key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert_eq!(action(&control, 20), Some(Action::Quit));
        assert_eq!(key(KeyCode::Char('c')), None);
        assert_eq!(action(&Event::Resize(80, 24), 20), None);
    }

    #[test]
    fn layers_go_round() {
        let state = State { layers: 3, ..State::default() };
        let layers = |action| {
            let mut state = state;
            let step = || {
                state = state.after(action);
                state.layer
            };
            std::iter::repeat_with(step).take(4).collect::<Vec<_>>()
        };
        assert_eq!(layers(Action::NextLayer), [Some(0), Some(1), Some(2), Some(0)]);
        assert_eq!(layers(Action::PreviousLayer), [Some(2), Some(1), Some(0), Some(2)]);
        assert_eq!(State { layer: Some(1), ..state }.after(Action::AllLayers).layer, None);
        assert_eq!(State::default().after(Action::NextLayer).layer, None, "a model without layers");
    }

    #[test]
    fn nothing_is_above_the_first_line() {
        assert_eq!(State::default().after(Action::Move(-5)).top, 0);
        assert_eq!(State { top: 7, ..State::default() }.after(Action::Top).top, 0);
    }

    #[test]
    fn trouble_says_how_old_the_picture_is() {
        let lines = trouble(&anyhow::anyhow!("no\nanswer"), "2026-11-27T10:00:24Z", 80);
        assert_eq!(lines[0].plain(), "no answer  Below is what was seen at 2026-11-27T10:00:24Z.");
    }

    #[test]
    fn footer_says_where_we_are() {
        let state = State { top: 10, layer: Some(2), layers: 3 };
        assert_eq!(state.footer(100, 20).plain(), "q quit  [ ] layer: 2  a all  arrows: lines 11-30 of 100");
        assert_eq!(State::default().footer(5, 20).plain(), "q quit");
    }
}
