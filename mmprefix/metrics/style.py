"""Style: how well a classifier that read users' own texts tells which of them wrote a text.

The classifier never meets the model whose texts it judges. It is TF-IDF of n-grams, case and punctuation kept, under
logistic regression with C = 10. ``FEATURES`` names its two forms: words (1 to 2; a mark of punctuation is a word) and
characters (1 to 4). Needs scikit-learn, the extra ``mmprefix[personal]``, which is imported when one is fit.

A score by itself says little. Beside it belong *chance* (1 / users), the *ceiling* (the same classifier on what the
users wrote themselves about the same inputs) and the *gap* to texts that the same model wrote while it was told
another user: a model that ignores the user writes the same texts, and its gap is 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmprefix.errors import InputError

FEATURES: dict[str, dict[str, Any]] = {
    "word": {"ngram_range": (1, 2), "token_pattern": r"\w+|[^\w\s]"},
    "char": {"ngram_range": (1, 4), "analyzer": "char"},
}
"""Options of scikit-learn's TfidfVectorizer by the name of the features."""

BEST = 5


class StyleClassifier:
    """Classifier of writers, fit on ``texts`` (N) and their ``users`` (N); ``features`` is one of ``FEATURES``.

    ``users`` are its U classes, sorted. Raises InputError without scikit-learn, for lists of different lengths, fewer
    than two users, and texts without a letter.
    """

    def __init__(self, texts: Sequence[str], users: Sequence[str], features: str = "word") -> None:
        if features not in FEATURES:
            raise InputError(f"features={features!r}: no such classifier; use one of {', '.join(FEATURES)}")
        if len(texts) != len(users):
            raise InputError(f"{len(texts)} texts but {len(users)} users: one each")
        if len(set(users)) < 2:
            raise InputError(f"style: texts of {len(set(users))} users; a classifier needs those of two or more")
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
            from sklearn.linear_model import LogisticRegression
        except ImportError:
            raise InputError("style: scikit-learn is missing; pip install 'mmprefix[personal]'") from None
        self._vectorizer = TfidfVectorizer(lowercase=False, **FEATURES[features])
        try:
            vectors = self._vectorizer.fit_transform(texts)
        except ValueError as error:
            raise InputError(f"style: the users' texts hold nothing to tell them by ({error})") from None
        self._model = LogisticRegression(C=10, max_iter=1000).fit(vectors, list(users))
        self.users: list[str] = [str(user) for user in self._model.classes_]

    def log_probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Log-probability of each user (N U) for each of ``texts`` (N, at least one)."""
        probabilities = self._model.predict_proba(self._vectorizer.transform(texts))
        return np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))


def style(classifier: StyleClassifier, texts: Sequence[str], users: Sequence[str]) -> dict[str, float]:
    """Score ``texts`` (N) as those of ``users`` (N), all of them known to the ``classifier``.

    Returns:
        accuracy: share of the texts that are taken for their user's. macro: its mean over users.
        best_five: share of the texts whose user is among the five likeliest.
        together: share of the users who are recognised by all their texts at once (log-probabilities are added).

    Raises:
        InputError: no text, lists of different lengths, a user whom the classifier does not know.
    """
    if not texts or len(texts) != len(users):
        raise InputError(f"style: {len(texts)} texts and {len(users)} users; give one user a text, and some texts")
    places = {user: place for place, user in enumerate(classifier.users)}
    unknown = next((user for user in users if user not in places), None)
    if unknown is not None:
        raise InputError(f"style: the classifier has read no text of user {unknown!r}")
    scores = classifier.log_probabilities(texts)  # (N U)
    own = np.array([places[user] for user in users])
    right = scores.argmax(1) == own
    likelier = (scores > scores[np.arange(len(own)), own][:, None]).sum(1)
    groups = [own == place for place in sorted(set(own.tolist()))]
    together = [scores[group].sum(0).argmax() == own[group][0] for group in groups]
    return {
        "accuracy": float(right.mean()),
        "macro": float(np.mean([right[group].mean() for group in groups])),
        "best_five": float((likelier < BEST).mean()),
        "together": float(np.mean(together)),
    }


def other_users(users: Sequence[str]) -> list[str]:
    """Another user for each of ``users`` (N); the same list gives the same answer.

    Each is named as often as it occurs, where none has more than half of the texts: in order by user, each text takes
    the user that stands as many places on as the largest user has texts. Otherwise the texts that would keep their user
    take the others in turn. Raises InputError for texts of one user.
    """
    if len(set(users)) == 1:
        raise InputError(f"all {len(users)} texts are those of one user: there is no other to name")
    most = max(Counter(users).values(), default=0)
    order = sorted(range(len(users)), key=lambda place: users[place])
    others = [""] * len(users)
    for rank, place in enumerate(order):
        others[place] = users[order[(rank + most) % len(order)]]
    left = [place for place in order if others[place] == users[place]]  # all of one user
    rest = sorted(set(users) - {users[place] for place in left})
    for rank, place in enumerate(left):
        others[place] = rest[rank % len(rest)]
    return others
