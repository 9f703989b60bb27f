THRESHOLD=0.75
import re
def normal(text):
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())
def item_text(item, open_family):
    return " ".join(item[:3] if open_family else item[:2])
def nearest(texts, others):
    from sklearn.feature_extraction.text import TfidfVectorizer
    vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 3)).fit_transform([normal(t) for t in [*texts, *others]])
    similarity = (vectors[: len(texts)] @ vectors[len(texts) :].T).toarray()
    best = similarity.argmax(axis=1)
    return [(float(row[c]), int(c)) for row, c in zip(similarity, best)]
