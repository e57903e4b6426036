"""The report that several files of tests look at."""

import pytest
import report_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """As `report_data.make_data`."""
    return report_data.make_data(tmp_path_factory.mktemp("report_data"))


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """The report's folder and the results."""
    return report_data.make_report(data[0], tmp_path_factory.mktemp("reports") / "report")


@pytest.fixture(scope="module")
def page(made):
    """The report's page."""
    return report_data.Page(made[0] / "index.html")
