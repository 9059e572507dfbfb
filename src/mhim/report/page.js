"use strict";
(function () {
  const table = document.getElementById("predictions");
  const body = table.tBodies[0];
  const search = document.getElementById("search");
  const onlyWrong = document.getElementById("only-wrong");
  const shown = document.getElementById("shown");

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      const wanted = words.every((word) => text.includes(word)) && (!onlyWrong.checked || row.classList.contains("wrong"));
      row.hidden = !wanted;
      count += wanted ? 1 : 0;
    }
    shown.textContent = count + " shown";
  }

  function compare(a, b) {
    const x = Number(a), y = Number(b);
    return a !== "" && b !== "" && !Number.isNaN(x) && !Number.isNaN(y) ? x - y : a.localeCompare(b, "en", { numeric: true });
  }

  function sort(heading, column) {
    const descending = heading.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const rows = Array.from(body.rows);
    rows.sort((a, b) => compare(a.cells[column].textContent, b.cells[column].textContent) * (descending ? -1 : 1));
    body.append(...rows);
  }

  Array.from(table.tHead.rows[0].cells).forEach(function (heading, column) {
    heading.querySelector("button").addEventListener("click", function () { sort(heading, column); });
  });
  search.addEventListener("input", filter);
  onlyWrong.addEventListener("change", filter);
  window.addEventListener("beforeprint", function () {
    for (const part of document.querySelectorAll("details")) part.open = true;
  });
})();
