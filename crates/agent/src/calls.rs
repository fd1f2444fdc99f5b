//! Answers by request id: a call that is repeated gets the first one's answer and does nothing (agent.proto).
//!
//! Owns: which mutating calls ran or run. A call goes on to its end even if nobody waits for it any more.
//! Never: knows what a call does.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use tokio::sync::watch;

/// Most answers that are kept.
const CAPACITY: usize = 512;

/// What a call does, on a thread that may block. Of one type for all calls: what runs it is compiled for each type, and in
/// a translated guest every copy costs its translation.
pub(crate) type Work<T> = Box<dyn FnOnce() -> T + Send>;

struct Table<T> {
    answers: HashMap<String, watch::Receiver<Option<T>>>,
    order: VecDeque<String>,
}

/// The table.
pub(crate) struct Calls<T> {
    table: Mutex<Table<T>>,
}

impl<T> Default for Calls<T> {
    fn default() -> Self {
        Self {
            table: Mutex::new(Table {
                answers: HashMap::new(),
                order: VecDeque::new(),
            }),
        }
    }
}

impl<T: Clone + Send + Sync + 'static> Calls<T> {
    /// The answer to call `id`: runs `work`, which may block, the first time. `None` if the work was torn down (the agent
    /// ends). An empty id is never remembered.
    pub(crate) async fn once(&self, id: &str, work: Work<T>) -> Option<T> {
        let mut answer = self.enter(id, work);
        answer
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|found| found.clone())
    }

    fn enter(&self, id: &str, work: Work<T>) -> watch::Receiver<Option<T>> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = table.answers.get(id) {
            return answer.clone();
        }
        let (tell, answer) = watch::channel(None);
        tokio::task::spawn_blocking(move || {
            tell.send_replace(Some(work()));
        });
        if !id.is_empty() {
            if table.order.len() == CAPACITY
                && let Some(oldest) = table.order.pop_front()
            {
                table.answers.remove(&oldest);
            }
            table.answers.insert(id.to_owned(), answer.clone());
            table.order.push_back(id.to_owned());
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;

    #[tokio::test]
    async fn a_repeated_call_does_nothing_and_gets_the_first_answer() {
        let calls = Calls::default();
        let count = Arc::new(AtomicU32::new(0));
        let work = || -> Work<u32> {
            let count = count.clone();
            Box::new(move || count.fetch_add(1, Ordering::SeqCst) + 1)
        };
        assert_eq!(calls.once("a", work()).await, Some(1));
        assert_eq!(calls.once("a", work()).await, Some(1));
        assert_eq!(calls.once("b", work()).await, Some(2));
        assert_eq!(calls.once("", work()).await, Some(3));
        assert_eq!(calls.once("", work()).await, Some(4));
    }

    #[tokio::test]
    async fn a_call_nobody_waits_for_still_ends_and_is_remembered() {
        let calls = Calls::default();
        let (go, gone) = mpsc::channel::<()>();
        {
            let waiting = calls.once(
                "a",
                Box::new(move || {
                    let _ = gone.recv();
                    7
                }),
            );
            tokio::select! {
                biased;
                _ = waiting => panic!("it cannot have ended"),
                () = tokio::task::yield_now() => {}
            }
        }
        go.send(()).unwrap();
        assert_eq!(calls.once("a", Box::new(|| 8)).await, Some(7));
    }

    #[tokio::test]
    async fn the_oldest_answers_are_forgotten() {
        let calls = Calls::default();
        for number in 0..=CAPACITY {
            calls.once(&number.to_string(), Box::new(|| 1)).await;
        }
        assert_eq!(calls.once("0", Box::new(|| 2)).await, Some(2));
        assert_eq!(calls.once("9", Box::new(|| 2)).await, Some(1));
    }
}
