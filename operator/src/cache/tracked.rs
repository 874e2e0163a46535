//! Calls that write, and the notes of what they wrote.
use std::fmt::Debug;

use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    core::{Request, Status},
};
use serde::Serialize;
use serde_json::Value;

use super::{Cache, Cached, progress, writes::Expected};

/// An [`Api`] that notes what it wrote for a deployment, until the watch has told it.
pub struct Tracked<'a, K> {
    api: Api<K>,
    cache: &'a Cache,
    uid: &'a str,
}

impl<'a, K: Cached> Tracked<'a, K> {
    /// Writes of the deployment with this UID.
    pub fn new(api: Api<K>, cache: &'a Cache, uid: &'a str) -> Self {
        Self { api, cache, uid }
    }

    /// As [`Api::create`].
    ///
    /// # Errors
    /// As there.
    pub async fn create(&self, params: &PostParams, object: &K) -> kube::Result<K>
    where
        K: Serialize,
    {
        let call = self.begin();
        let answer = self.api.create(params, object).await;
        call.wrote(answer)
    }

    /// As [`Self::create`], of an object with fields that its type does not have.
    ///
    /// # Errors
    /// As there.
    pub async fn create_value(&self, params: &PostParams, object: &Value) -> kube::Result<K> {
        let body = serde_json::to_vec(object).map_err(kube::Error::SerdeError)?;
        let request = Request::new(self.api.resource_url()).create(params, body);
        let request = request.map_err(kube::Error::BuildRequest)?;
        let call = self.begin();
        let answer = self.api.clone().into_client().request(request).await;
        call.wrote(answer)
    }

    /// As [`Api::patch`].
    ///
    /// # Errors
    /// As there.
    pub async fn patch<P: Serialize + Debug>(
        &self,
        name: &str,
        params: &PatchParams,
        patch: &Patch<P>,
    ) -> kube::Result<K> {
        let call = self.begin();
        let answer = self.api.patch(name, params, patch).await;
        call.wrote(answer)
    }

    /// As [`Api::delete`], without the answer.
    ///
    /// # Errors
    /// As there.
    pub async fn delete(&self, name: &str, params: &DeleteParams) -> kube::Result<()> {
        let call = self.begin();
        match self.api.delete(name, params).await {
            Ok(answer) => {
                let status_uid = |status: Status| status.details.map(|details| details.uid);
                let uid = answer.either(|object| object.uid(), status_uid).filter(|uid| !uid.is_empty());
                call.settle(uid.map(|uid| Expected::gone(name.to_owned(), uid)));
                Ok(())
            }
            Err(error) => {
                call.failed(&error);
                Err(error)
            }
        }
    }

    /// Until its answer is here, a call may have done anything.
    fn begin(&self) -> Call<'_, 'a, K> {
        Call { tracked: self, open: true }
    }
}

/// A call under way. One that is dropped before its answer is read leaves a question to the API server behind.
struct Call<'c, 'a, K: Cached> {
    tracked: &'c Tracked<'a, K>,
    open: bool,
}

impl<K: Cached> Call<'_, '_, K> {
    fn wrote(self, answer: kube::Result<K>) -> kube::Result<K> {
        match &answer {
            Ok(object) => {
                let lists = self.tracked.cache.kind::<K>().progress().seen().lists_begun;
                let version = progress::version(object);
                self.settle(version.map(|version| Expected::Version { version, lists }));
            }
            Err(error) => self.failed(error),
        }
        answer
    }

    /// Who was refused changed nothing.
    fn failed(mut self, error: &kube::Error) {
        self.open = !matches!(error, kube::Error::Api(status) if (400..500).contains(&status.code));
    }

    /// An answer that does not say what to wait for is no better than none.
    fn settle(mut self, expected: Option<Expected>) {
        if let Some(expected) = expected {
            self.open = false;
            self.tracked.cache.writes.add(self.tracked.uid, K::NAME, expected);
        }
    }
}

impl<K: Cached> Drop for Call<'_, '_, K> {
    fn drop(&mut self) {
        if self.open {
            self.tracked.cache.writes.add(self.tracked.uid, K::NAME, Expected::Anything);
        }
    }
}
