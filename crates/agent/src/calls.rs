//! Answers by request id: a call that is repeated gets the first one's answer and does nothing (agent.proto).
//!
//! Owns: which mutating calls ran or run. A call goes on to its end even if nobody waits for it any more.
//! Never: knows what a call does.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use tokio::sync::watch;

/// Most answers that are kept.
const CAPACITY: usize = 512;

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
    /// The answer to call `id`: runs `work` the first time. `None` if the work was torn down (the agent ends).
    /// An empty id is never remembered.
    pub(crate) async fn once<F>(&self, id: &str, work: impl FnOnce() -> F) -> Option<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut answer = self.enter(id, work);
        answer
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|found| found.clone())
    }

    fn enter<F>(&self, id: &str, work: impl FnOnce() -> F) -> watch::Receiver<Option<T>>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = table.answers.get(id) {
            return answer.clone();
        }
        let (tell, answer) = watch::channel(None);
        let work = work();
        tokio::spawn(async move {
            let result = work.await;
            tell.send_replace(Some(result));
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

    #[tokio::test]
    async fn a_repeated_call_does_nothing_and_gets_the_first_answer() {
        let calls = Calls::default();
        let count = Arc::new(AtomicU32::new(0));
        let work = || {
            let count = count.clone();
            async move { count.fetch_add(1, Ordering::SeqCst) + 1 }
        };
        assert_eq!(calls.once("a", work).await, Some(1));
        assert_eq!(calls.once("a", work).await, Some(1));
        assert_eq!(calls.once("b", work).await, Some(2));
        assert_eq!(calls.once("", work).await, Some(3));
        assert_eq!(calls.once("", work).await, Some(4));
    }

    #[tokio::test]
    async fn a_call_nobody_waits_for_still_ends_and_is_remembered() {
        let calls = Calls::default();
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        {
            let waiting = calls.once("a", || async move {
                let _ = gone.await;
                7
            });
            tokio::select! {
                biased;
                _ = waiting => panic!("it cannot have ended"),
                () = tokio::task::yield_now() => {}
            }
        }
        go.send(()).unwrap();
        assert_eq!(calls.once("a", || async { 8 }).await, Some(7));
    }

    #[tokio::test]
    async fn the_oldest_answers_are_forgotten() {
        let calls = Calls::default();
        for number in 0..=CAPACITY {
            calls.once(&number.to_string(), || async { 1 }).await;
        }
        assert_eq!(calls.once("0", || async { 2 }).await, Some(2));
        assert_eq!(calls.once("9", || async { 2 }).await, Some(1));
    }
}
