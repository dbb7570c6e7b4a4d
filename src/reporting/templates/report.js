// Behaviour of report.html. No network, no storage, no library; the page is readable without it.
(() => {
  "use strict";
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const byId = (id) => document.getElementById(id);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const [PATH, LABEL, DEFECT, SCORE, DECISION] = [0, 1, 2, 3, 4];
  const state = { threshold: page.threshold, moved: false, open: -1 };
  const cards = all("#cards > .card");
  document.documentElement.classList.add("js");

  // --- decisions ---------------------------------------------------------------------------
  const isAlarm = (row) =>
    state.moved && row[SCORE] !== null ? row[SCORE] > state.threshold : row[DECISION] === 1;
  const outcomeOf = (row) => {
    const alarm = isAlarm(row);
    if (row[LABEL] === 1) return alarm ? "hit" : "miss";
    if (row[LABEL] === 0) return alarm ? "false alarm" : "correct pass";
    return alarm ? "alarm" : "pass";
  };
  const show = (value) => (value === null ? "not finite" : String(Number(value.toPrecision(4))));
  const ratio = (part, whole) => (whole ? part / whole : NaN);
  const digits = (value, count) => (Number.isNaN(value) ? "not defined" : value.toFixed(count));

  const countOutcomes = () => {
    const counts = { hit: 0, miss: 0, "false alarm": 0, "correct pass": 0, alarm: 0, pass: 0 };
    for (const row of page.rows) counts[outcomeOf(row)] += 1;
    return counts;
  };

  const showCounts = (counts) => {
    for (const cell of all("[data-count]")) cell.textContent = counts[cell.dataset.count];
    for (const chip of all("[data-chip]"))
      if (chip.dataset.chip) chip.textContent = counts[chip.dataset.chip];
    const { hit, miss, "false alarm": wrong, "correct pass": right } = counts;
    const rates = {
      recall: ratio(hit, hit + miss),
      precision: ratio(hit, hit + wrong),
      f1: ratio(2 * hit, 2 * hit + wrong + miss),
      false_alarm_rate: ratio(wrong, wrong + right),
    };
    for (const cell of all("[data-rate]")) cell.textContent = digits(rates[cell.dataset.rate], 4);
    place("roc", rates.false_alarm_rate, rates.recall);
    place("pr", rates.recall, rates.precision);
    return rates;
  };

  const place = (kind, x, y) => {
    for (const point of all(`[data-curve="${kind}"]`)) {
      const known = !Number.isNaN(x) && !Number.isNaN(y);
      point.setAttribute("cx", known ? 100 * x : -50);
      point.setAttribute("cy", known ? 100 * (1 - y) : -50);
    }
  };

  // --- recall by defect type, Wilson interval ----------------------------------------------
  const wilson = (found, total) => {
    const z2 = 1.959963984540054 ** 2;
    const share = found / total;
    const middle = (share + z2 / (2 * total)) / (1 + z2 / total);
    const half =
      (Math.sqrt(z2) * Math.sqrt((share * (1 - share)) / total + z2 / (4 * total * total))) /
      (1 + z2 / total);
    return [Math.max(0, middle - half), Math.min(1, middle + half)];
  };

  const recallRows = all("[data-recall]").map((line) => ({ line, first: line.cloneNode(true) }));
  const showRecall = () => {
    for (const { line, first } of recallRows) {
      if (!state.moved) {
        line.replaceChildren(...first.cloneNode(true).childNodes);
        continue;
      }
      const rows = page.rows.filter((r) => r[LABEL] === 1 && r[DEFECT] === line.dataset.recall);
      if (!rows.length) continue;
      const found = rows.filter(isAlarm).length;
      const [low, high] = wilson(found, rows.length);
      const cell = (name) => line.querySelector(`[data-cell="${name}"]`);
      cell("found").textContent = found;
      cell("recall").textContent = (found / rows.length).toFixed(3);
      cell("interval").textContent = `${low.toFixed(3)} to ${high.toFixed(3)}`;
      const percent = (value) => `${100 * value}%`;
      line.querySelector(".fill").setAttribute("width", percent(found / rows.length));
      const [span, left, right] = all(".whisker", line);
      span.setAttribute("x1", percent(low));
      span.setAttribute("x2", percent(high));
      for (const name of ["x1", "x2"]) {
        left.setAttribute(name, percent(low));
        right.setAttribute(name, percent(high));
      }
    }
  };

  // --- threshold ---------------------------------------------------------------------------
  const slider = byId("threshold");
  const exact = byId("threshold-value");
  const fraction = (value) => (value - page.low) / (page.high - page.low);
  const promise = byId("promise"); // missing where nothing was calibrated
  const above = (value) => page.normal.filter((score) => score > value).length;
  const promised = (value) => (1 + above(value)) / (page.normal.length + 1);
  const percent = (share) => `${Number((100 * share).toPrecision(3))} %`;
  let announcement = 0;

  const showThreshold = () => {
    const value = state.threshold === null ? page.high : state.threshold;
    const x = `${Math.min(100, Math.max(0, 100 * fraction(value)))}%`;
    const line = byId("threshold-line");
    if (line) {
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
      byId("threshold-text").setAttribute("x", x);
      byId("threshold-text").textContent = show(value);
    }
    slider.value = String(1000 * fraction(value));
    const kept = promise ? `${percent(promised(value))} promised` : "";
    slider.setAttribute("aria-valuetext", `${show(value)} ${kept}`.trim());
    if (promise) {
      byId("promised").textContent = percent(promised(value));
      promise.value = String(Number((100 * promised(value)).toPrecision(3)));
    }
    byId("threshold-reset").disabled = !state.moved;
  };

  const update = () => {
    const counts = countOutcomes();
    const rates = showCounts(counts);
    showRecall();
    showThreshold();
    for (const card of cards) {
      const outcome = outcomeOf(page.rows[Number(card.dataset.index)]);
      if (card.dataset.outcome === outcome) continue;
      card.dataset.outcome = outcome;
      card.querySelector(".badge").textContent = outcome;
    }
    filter();
    window.clearTimeout(announcement);
    if (!state.moved) return;
    announcement = window.setTimeout(() => {
      byId("live").textContent =
        `Threshold ${show(state.threshold)}: ${counts.miss} misses, ` +
        `${counts["false alarm"]} false alarms, recall ${digits(rates.recall, 3)}.`;
    }, 400);
  };

  const move = (value) => {
    if (!Number.isFinite(value)) return;
    state.threshold = value;
    state.moved = true;
    update();
  };
  slider.addEventListener("input", () => {
    move(page.low + (Number(slider.value) / 1000) * (page.high - page.low));
    exact.value = show(state.threshold);
  });
  slider.addEventListener("change", () => sort());
  exact.addEventListener("change", () => {
    if (exact.value !== "") move(Number(exact.value));
    sort();
  });
  if (promise)
    promise.addEventListener("change", () => {
      const n = page.normal.length;
      const order = Math.ceil((n + 1) * (1 - Number(promise.value) / 100) - 1e-9);
      move(page.normal[Math.min(n, Math.max(1, order)) - 1]);
      exact.value = show(state.threshold);
      sort();
    });
  byId("threshold-reset").addEventListener("click", () => {
    state.threshold = page.threshold;
    state.moved = false;
    exact.value = page.threshold === null ? "" : show(page.threshold);
    byId("live").textContent = "Back to the threshold of the run.";
    update();
    sort();
  });

  // --- gallery -----------------------------------------------------------------------------
  const gallery = byId("cards");
  const filter = () => {
    const checked = document.querySelector('input[name="outcome"]:checked');
    const wanted = checked ? checked.value : "";
    const defect = byId("defect").value;
    const search = byId("search").value.trim().toLowerCase();
    let count = 0;
    for (const card of cards) {
      const row = page.rows[Number(card.dataset.index)];
      const fits =
        (!wanted || card.dataset.outcome === wanted) &&
        (!defect || row[DEFECT] === defect) &&
        (!search || row[PATH].toLowerCase().includes(search));
      card.hidden = !fits;
      count += fits;
    }
    byId("shown").textContent = count;
    byId("empty").hidden = count > 0;
  };

  const margin = (row) => {
    const gap = Math.abs(row[SCORE] - state.threshold);
    const known = row[SCORE] !== null && state.threshold !== null;
    return known ? gap : Number.MAX_VALUE;
  };
  const orders = {
    worst: (a, b) => {
      const wrong = (row) => ["miss", "false alarm"].includes(outcomeOf(row));
      if (wrong(a) !== wrong(b)) return wrong(a) ? -1 : 1;
      return wrong(a) ? margin(b) - margin(a) : margin(a) - margin(b);
    },
    high: (a, b) => (b[SCORE] ?? Infinity) - (a[SCORE] ?? Infinity) || 0,
    low: (a, b) => (a[SCORE] ?? Infinity) - (b[SCORE] ?? Infinity) || 0,
    name: (a, b) => a[PATH].localeCompare(b[PATH], undefined, { numeric: true }),
  };
  const sort = () => {
    const order = orders[byId("sort").value];
    const rowOf = (card) => page.rows[Number(card.dataset.index)];
    cards.sort((a, b) => order(rowOf(a), rowOf(b)) || a.dataset.index - b.dataset.index);
    gallery.append(...cards);
  };

  for (const control of all('input[name="outcome"], #defect')) control.addEventListener("change", filter);
  byId("search").addEventListener("input", filter);
  byId("sort").addEventListener("change", sort);

  const openable = () => cards.filter((card) => !card.hidden && card.querySelector(".open"));
  gallery.addEventListener("keydown", (event) => {
    const list = openable();
    const at = list.indexOf(event.target.closest(".card"));
    const top = list.length ? list[0].offsetTop : 0;
    const columns = Math.max(1, list.filter((card) => card.offsetTop === top).length);
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
    const goal = { Home: 0, End: list.length - 1 }[event.key] ?? at + steps[event.key];
    if (at < 0 || !list[goal]) return;
    event.preventDefault();
    list[goal].querySelector(".open").focus();
  });

  // --- overlay -----------------------------------------------------------------------------
  const opacities = [byId("opacity"), byId("viewer-opacity")];
  for (const range of opacities)
    range.addEventListener("input", () => {
      for (const other of opacities) other.value = range.value;
      document.documentElement.style.setProperty("--heat", String(range.value / 100));
    });
  const toggles = [byId("lines"), byId("viewer-lines")];
  for (const box of toggles)
    box.addEventListener("change", () => {
      for (const other of toggles) other.checked = box.checked;
      document.documentElement.dataset.lines = box.checked ? "on" : "off";
    });

  // --- viewer ------------------------------------------------------------------------------
  const viewer = byId("viewer");
  const open = (card) => {
    const index = Number(card.dataset.index);
    const row = page.rows[index];
    const list = openable();
    state.open = index;
    const picture = card.querySelector(".stack").cloneNode(true);
    const photo = picture.querySelector(".photo");
    // As large as the window allows without cutting; narrow pictures must not become tall ones.
    const shape = photo.getAttribute("width") / photo.getAttribute("height");
    picture.style.maxWidth = `calc(84vh * ${shape})`;
    byId("viewer-picture").replaceChildren(picture);
    byId("viewer-name").textContent = row[PATH];
    const truth = { 1: `defective (${row[DEFECT]})`, 0: "normal" }[row[LABEL]] || "no label";
    byId("viewer-outcome").dataset.outcome = outcomeOf(row);
    byId("viewer-outcome").firstElementChild.textContent = outcomeOf(row);
    byId("viewer-truth").textContent = truth;
    byId("viewer-score").textContent = show(row[SCORE]);
    byId("viewer-threshold").textContent = show(state.threshold);
    const explained = all(`main [data-explains="${index}"]`);
    byId("viewer-extra").replaceChildren(...explained.map((each) => each.cloneNode(true)));
    byId("viewer-place").textContent = `${list.indexOf(card) + 1} of ${list.length}`;
    if (!viewer.open) viewer.showModal();
  };
  const step = (by) => {
    const list = openable();
    const at = list.findIndex((card) => Number(card.dataset.index) === state.open);
    if (list.length) open(list[(at + by + list.length) % list.length]);
  };
  gallery.addEventListener("click", (event) => {
    if (event.target.closest(".open")) open(event.target.closest(".card"));
  });
  byId("score-chart").addEventListener("click", (event) => {
    const index = event.target.dataset.index;
    const card = cards.find((each) => each.dataset.index === index && each.querySelector(".open"));
    if (card) open(card);
  });
  byId("viewer-close").addEventListener("click", () => viewer.close());
  byId("viewer-previous").addEventListener("click", () => step(-1));
  byId("viewer-next").addEventListener("click", () => step(1));
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer) viewer.close();
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.target.type === "range") return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  viewer.addEventListener("close", () => {
    const card = cards.find((each) => Number(each.dataset.index) === state.open);
    if (card && !card.hidden) card.querySelector(".open").focus();
  });

  // --- copy --------------------------------------------------------------------------------
  const copy = byId("copy");
  if (copy)
    copy.addEventListener("click", async () => {
      const range = document.createRange();
      range.selectNodeContents(byId("command"));
      window.getSelection().removeAllRanges();
      window.getSelection().addRange(range);
      try {
        await navigator.clipboard.writeText(byId("command").textContent);
        copy.textContent = "Copied";
      } catch {
        copy.textContent = "Selected"; // clipboards are refused on some file:// pages
      }
      window.setTimeout(() => (copy.textContent = "Copy"), 2000);
    });

  exact.value = page.threshold === null ? "" : show(page.threshold);
  update();
})();
