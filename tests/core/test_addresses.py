"""What is shown of an address that holds a password."""
import pytest

from tasks.opd.core.addresses import masked, without_user


@pytest.mark.parametrize("address, shown", [
    ("https://me:hunter2@mlflow.local:5000/path", "https://me:***@mlflow.local:5000/path"),
    ("postgresql+psycopg2://me:p@ss:w@db/mlflow", "postgresql+psycopg2://me:***@db/mlflow"),
    ("postgresql://:hunter2@db/mlflow", "postgresql://:***@db/mlflow"),
    ("postgresql://db/mlflow?user=me&password=hunter2&a=b", "postgresql://db/mlflow?user=me&password=***&a=b"),
    ("postgresql://me:hun/ter2@db/mlflow", "postgresql://me:***@db/mlflow"),
    ("postgresql://me:1234/ter2@db/mlflow", "postgresql://me:***@db/mlflow"),
    ("postgresql://me:p@ss/w:d@db:5432/mlflow", "postgresql://me:***@db:5432/mlflow"),
    ("mysql+pymysql://me:hun%2Fter%402@db/mlflow", "mysql+pymysql://me:***@db/mlflow"),
    ("https://me:hun/ter@2@mlflow.local:5000/path", "https://me:***@mlflow.local:5000/path"),
    ("http://127.0.0.1:5000/#/models/m@champion", "http://127.0.0.1:5000/#/models/m@champion"),
    ('["http://a:b/c@d/e","http://f:g@h"]', '["http://a:***@d/e","http://f:***@h"]'),
    ("failed: http://a:b@c/d, then http://e:f@g/h", "failed: http://a:***@c/d, then http://e:***@g/h"),
    ("http://127.0.0.1:5000/#/experiments/1", "http://127.0.0.1:5000/#/experiments/1"),
    ("http://me@127.0.0.1:5000", "http://me@127.0.0.1:5000"),
    ("sqlite:////home/me/.opd/mlflow.db", "sqlite:////home/me/.opd/mlflow.db"),
    ("charts at http://host:5000/a, asked me@there.org", "charts at http://host:5000/a, asked me@there.org")])
def test_passwords_in_addresses_are_masked_and_nothing_else_is(address, shown):
    assert masked(address) == masked(shown) == shown


def test_user_and_password_are_taken_out_of_an_address_and_decoded():
    assert without_user("https://me:p%40ss@host:1/a?b=c#d") == ("https://host:1/a?b=c#d", "me", "p@ss")
    assert without_user("https://me:p/a:s@s@host:1/a") == ("https://host:1/a", "me", "p/a:s@s")
    assert without_user("https://me:pw@host:1/a@b") == ("https://host:1/a@b", "me", "pw")
    assert without_user("http://host:1/a@b") == ("http://host:1/a@b", "", "")
    assert without_user("https://host:1/a") == ("https://host:1/a", "", "")
