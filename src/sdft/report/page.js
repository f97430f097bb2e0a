// What a report does beyond being read: tables that sort, and the browsers of rewrites and replies.
//
// No framework and no build step. Text from datasets and models is only ever set as textContent, never as markup. A
// page that is opened from disk may not fetch data, so what is not in the page is loaded as scripts, each of which
// calls `sdftRows(name, value)`.
"use strict";
(() => {
  // Small helpers

  /** An element with properties, attributes (those with a dash, and `role`) and children. */
  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
      else if (name.includes("-") || name === "role" || name === "for") element.setAttribute(name, value);
      else element[name] = value;
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }

  const count = (number) => number.toLocaleString("en");
  const ordinal = (index) => ["First", "Second", "Third", "Fourth", "Fifth"][index] ?? `${index + 1}th`;
  const plural = (number, one) => `${count(number)} ${one}${number === 1 ? "" : "s"}`;

  // Tables

  /** Rows that move together: a benchmark's metrics, or each row by itself. */
  function blocks(body) {
    const found = [];
    for (const row of body.rows) {
      if (row.classList.contains("role")) continue;
      const name = row.dataset.block;
      if (name !== undefined && found.at(-1)?.name === name) found.at(-1).rows.push(row);
      else found.push({ name, rows: [row] });
    }
    return found;
  }

  /** What a block is sorted by: its first row's cell, by `data-sort` where it has one. */
  function sortKey(block, column) {
    const cell = block.rows[0].cells[column];
    const text = cell?.dataset.sort ?? cell?.textContent.trim() ?? "";
    const number = Number(text);
    return text === "" || text === "–" ? null : Number.isNaN(number) ? text.toLowerCase() : number;
  }

  function compare(a, b) {
    if (a === null || b === null) return (a === null) - (b === null); // what has no value comes last
    if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
    return typeof a === "number" ? -1 : 1;
  }

  function sortTable(table, column, direction) {
    for (const body of table.tBodies) {
      body.sdftOrder ??= blocks(body);
      let order = body.sdftOrder;
      if (direction !== "none") {
        const keyed = order.map((block) => ({ block, key: sortKey(block, column) }));
        const sign = direction === "ascending" ? 1 : -1;
        keyed.sort((a, b) => (a.key === null || b.key === null ? 1 : sign) * compare(a.key, b.key));
        order = keyed.map(({ block }) => block);
      }
      for (const block of order) body.append(...block.rows);
    }
  }

  function makeSortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const numeric = head.classList.contains("number");
      const button = make("button", { type: "button", className: "sort", title: "Sort by this column" });
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const steps = numeric ? ["descending", "ascending", "none"] : ["ascending", "descending", "none"];
        const now = steps.indexOf(head.getAttribute("aria-sort") ?? "none");
        const next = steps[(now + 1) % 3];
        for (const other of heads) other.removeAttribute("aria-sort");
        if (next !== "none") head.setAttribute("aria-sort", next);
        sortTable(table, column, next);
      });
    });
  }

  // Parts of books: from the page, or from scripts beside it

  const waiting = new Map(); // name → resolve
  const parts = new Map(); // name → promise of its value

  window.sdftRows = (name, value) => {
    waiting.get(name)?.(value);
    waiting.delete(name);
  };

  function load(name, inPage) {
    if (!parts.has(name)) {
      parts.set(name, inPage ? Promise.resolve(JSON.parse(document.getElementById(name).textContent)) : fromDisk(name));
    }
    return parts.get(name);
  }

  function fromDisk(name) {
    return new Promise((resolve, reject) => {
      waiting.set(name, resolve);
      const script = make("script", { src: `rows/${name}.js`, async: true });
      script.addEventListener("error", () => {
        waiting.delete(name);
        parts.delete(name);
        reject(new Error(`rows/${name}.js is missing: keep the folder “rows” beside this file`));
      });
      script.addEventListener("load", () => script.remove());
      document.head.append(script);
    });
  }

  /** The texts of one row, from its piece; `ready` gives them at once where the piece is there. */
  class Pieces {
    constructor(book) {
      this.book = book;
      this.there = new Map(); // piece → rows
    }

    pieceOf(row) {
      let low = 0;
      let high = this.book.starts.length - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (this.book.starts[middle] <= row) low = middle;
        else high = middle - 1;
      }
      return low;
    }

    ready(row) {
      const piece = this.pieceOf(row);
      return this.there.get(piece)?.[row - this.book.starts[piece]];
    }

    async load(piece) {
      if (!this.there.has(piece)) {
        this.there.set(piece, await load(`${this.book.stem}-${piece}`, this.book.inPage));
      }
      return this.there.get(piece);
    }

    async row(row) {
      await this.load(this.pieceOf(row));
      return this.ready(row);
    }
  }

  // Words that differ

  const FURTHEST = 600; // edits after which two texts are called different as a whole

  /** Words and signs, each with the space behind it; a leading space is a word of its own. */
  const words = (text) => text.match(/(?:[\p{L}\p{N}\p{M}_]+|[^\s\p{L}\p{N}\p{M}_]|^\s+)\s*/gu) ?? [];

  /**
   * Which words of `old` were left out and which of `now` were added, by Myers' shortest edit: two arrays of booleans,
   * or null for texts that have little in common.
   */
  function changed(old, now) {
    const a = old.map((word) => word.trimEnd());
    const b = now.map((word) => word.trimEnd());
    let start = 0;
    while (start < a.length && start < b.length && a[start] === b[start]) start += 1;
    let [n, m] = [a.length, b.length];
    while (n > start && m > start && a[n - 1] === b[m - 1]) [n, m] = [n - 1, m - 1];
    const most = Math.min(FURTHEST, n + m - 2 * start);
    const reach = new Int32Array(2 * most + 3).fill(start); // diagonal → furthest place in `old`
    const middle = most + 1;
    const trace = [];
    let edits = -1;
    search: for (let d = 0; d <= most; d += 1) {
      trace.push(reach.slice(middle - d - 1, middle + d + 2));
      for (let k = -d; k <= d; k += 2) {
        const down = k === -d || (k !== d && reach[middle + k - 1] < reach[middle + k + 1]);
        let x = down ? reach[middle + k + 1] : reach[middle + k - 1] + 1;
        while (x < n && x - k < m && a[x] === b[x - k]) x += 1;
        reach[middle + k] = x;
        if (x >= n && x - k >= m) {
          edits = d;
          break search;
        }
      }
    }
    if (edits < 0) return null;
    const removed = new Array(a.length).fill(false);
    const added = new Array(b.length).fill(false);
    let [x, y] = [n, m];
    for (let d = edits; d > 0; d -= 1) {
      const before = trace[d]; // diagonals -d-1 … d+1
      const at = (k) => before[k + d + 1];
      const k = x - y;
      const down = k === -d || (k !== d && at(k - 1) < at(k + 1));
      const from = down ? k + 1 : k - 1;
      const [px, py] = [at(from), at(from) - from];
      if (down) added[py] = true;
      else removed[px] = true;
      [x, y] = [px, py];
    }
    return [removed, added];
  }

  /** Both texts as nodes, with what differs marked. */
  function marked(old, now) {
    const [before, after] = [words(old), words(now)];
    const marks = old === now ? [[], []] : changed(before, after);
    const whole = marks === null;
    return [
      runs(before, whole ? before.map(() => true) : marks[0], "del"),
      runs(after, whole ? after.map(() => true) : marks[1], "ins"),
    ];
  }

  function runs(list, marks, tag) {
    const nodes = [];
    for (let start = 0; start < list.length; ) {
      let end = start + 1;
      while (end < list.length && Boolean(marks[end]) === Boolean(marks[start])) end += 1;
      const text = list.slice(start, end).join("");
      if (marks[start]) {
        const bare = text.trimEnd();
        nodes.push(make(tag, { textContent: bare }), text.slice(bare.length));
      } else nodes.push(text);
      start = end;
    }
    return nodes;
  }

  // What a row shows

  function badge(text, tone) {
    return make("span", { className: `badge ${tone}`, textContent: text });
  }

  function passage(name, nodes, tone = "", note = "") {
    const empty = nodes.every((node) => (node.textContent ?? node) === "");
    const text = make("div", { className: "text", dir: "auto", tabIndex: 0, role: "group", "aria-label": name });
    text.append(...(empty ? [make("em", { textContent: "(empty)" })] : nodes));
    return make(
      "div",
      { className: `passage ${tone}` },
      make("h4", { textContent: name }),
      text,
      note ? make("p", { className: "small", textContent: note }) : null,
    );
  }

  function question(text) {
    if (!text) return null;
    const shown = make("div", { className: "text instruction", dir: "auto", textContent: text });
    if (text.length < 600) return shown;
    return make("details", {}, make("summary", { textContent: "Prompt" }), shown);
  }

  function refused(candidate) {
    const detail = candidate.detail ? ` (${candidate.detail})` : "";
    const name = `${ordinal(candidate.candidate)} rewrite, ${candidate.ok ? "passed" : "refused"}: ${candidate.reason}${detail}`;
    return passage(name, [candidate.text], "refused");
  }

  function showRewrite(row) {
    const taken = row.chosen !== null;
    const [original, chosen] = taken ? marked(row.original, row.chosen) : [[row.original], []];
    const right = taken
      ? passage(`${ordinal(row.candidate ?? 0)} rewrite, taken`, chosen, "chosen")
      : make("div", { className: "stack" }, ...row.others.map(refused));
    if (!taken && !row.others.length) {
      right.append(passage("No rewrite", ["None was generated."], "refused"));
    }
    const before =
      taken && row.others.length
        ? make(
            "details",
            {},
            make("summary", { textContent: `${plural(row.others.length, "other candidate")}` }),
            make("div", { className: "stack" }, ...row.others.map(refused)),
          )
        : null;
    return [
      question(row.question),
      make(
        "div",
        { className: "pair" },
        passage(taken ? "Original" : "Original, kept", original, taken ? "" : "chosen"),
        right,
      ),
      before,
    ];
  }

  /** `judged` is false where all replies have one verdict, as in the drift from the seed: then it says nothing. */
  function showReplies(row, models, [left, right], judged) {
    const replies = [row.replies[left], row.replies[right]];
    const texts = replies.map((reply) => reply?.text ?? "");
    const sides = left === right || replies.includes(null) ? texts.map((text) => [text]) : marked(...texts);
    const panes = [left, right].map((model, side) => {
      const reply = replies[side];
      const name = models[model][1];
      if (!reply) return passage(name, ["No reply in this run."], "refused");
      const values = Object.entries(reply.values).map(([key, value]) => `${key} ${Number(value.toPrecision(4))}`);
      const cut = reply.finish === "length" ? ["cut at the limit"] : reply.finish === "error" ? ["failed"] : [];
      const note = [...cut, plural(reply.tokens, "token"), ...values].join(" · ");
      const verdict = judged ? `: ${reply.reason}${reply.detail ? ` (${reply.detail})` : ""}` : "";
      return passage(`${name}${verdict}`, sides[side], judged && reply.ok ? "chosen" : "", note);
    });
    return [
      question(row.question),
      row.reference ? make("p", { className: "reference" }, make("span", { className: "quiet", textContent: "Reference: " }), row.reference) : null,
      make("div", { className: "pair" }, ...panes),
    ];
  }

  // A browser of one kind of rows

  const HEIGHT = 54; // of a listed row, as in the style sheet
  const SLICE = 12; // milliseconds of work before the page may draw again
  const pause = () => new Promise((resolve) => setTimeout(resolve));
  let last = null; // the browser that keys go to

  class Browser {
    constructor(section, kind, books) {
      this.section = section;
      this.kind = kind; // `rewrites` or `replies`
      this.books = books;
      this.chosen = [0, 0]; // models side by side
      this.turn = 0; // counts filterings: an older one stops when a newer begins
      this.build();
      this.use(books[0]);
    }

    // The parts of the page

    build() {
      const id = (name) => `${this.kind}-${name}`;
      this.search = make("input", {
        type: "search",
        id: id("search"),
        placeholder: "Search all texts",
        title: "The first 24,000 characters of each text are searched",
        autocomplete: "off",
        spellcheck: false,
      });
      this.search.addEventListener("input", () => this.filterSoon());
      this.tools = make("div", { className: "filters" });
      this.status = make("p", { className: "status", role: "status" });
      this.reset = make("button", { type: "button", className: "plain", textContent: "Clear filters", hidden: true });
      this.reset.addEventListener("click", () => this.clear());
      this.room = make("div", { className: "room", role: "presentation" });
      this.list = make(
        "div",
        { className: "rows", id: id("list"), role: "listbox", tabIndex: 0, "aria-label": `Rows: ${this.kind}` },
        this.room,
      );
      this.list.addEventListener("scroll", () => requestAnimationFrame(() => this.draw()), { passive: true });
      this.list.addEventListener("keydown", (event) => this.listKey(event));
      const what = this.kind === "rewrites" ? "The open rewrite" : "The open replies";
      this.detail = make("div", { className: "detail", role: "region", "aria-label": what });
      const root = make(
        "div",
        { className: "browser" },
        make(
          "div",
          { className: "tools" },
          make("div", { className: "field wide" }, make("label", { for: id("search"), textContent: "Search" }), this.search),
          this.tools,
        ),
        make("div", { className: "line" }, this.status, this.reset),
        make("div", { className: "panes" }, this.list, this.detail),
        this.help(),
      );
      root.addEventListener("focusin", () => (last = this));
      root.addEventListener("pointerdown", () => (last = this));
      new ResizeObserver(() => this.draw()).observe(this.list);
      this.root = root;
      this.section.append(root);
    }

    help() {
      const key = (name) => make("kbd", { textContent: name });
      const keys = make("p", { className: "small keys" });
      keys.append(key("j"), " ", key("k"), " next and previous row, ", key("/"), " search, ", key("Esc"), " clear the filters");
      return keys;
    }

    field(name, label, input) {
      input.id = `${this.kind}-${name}`;
      return make("div", { className: "field" }, make("label", { for: input.id, textContent: label }), input);
    }

    choice(name, label, options, handler) {
      const select = make("select");
      for (const [value, text] of options) select.append(make("option", { value, textContent: text }));
      select.addEventListener("change", handler);
      this.inputs[name] = select;
      return this.field(name, label, select);
    }

    range(name, label) {
      const ends = ["least", "most"].map((end) => {
        const input = make("input", {
          type: "number",
          step: "any",
          placeholder: end === "least" ? "from" : "to",
          "aria-label": `${label}, at ${end}`,
        });
        input.addEventListener("input", () => this.filterSoon());
        this.inputs[`${name}-${end}`] = input;
        return input;
      });
      const legend = make("span", { className: "label", textContent: label });
      return make("div", { className: "field range" }, legend, make("div", { className: "ends" }, ...ends));
    }

    // A book

    async use(book) {
      this.book = book;
      this.pieces = new Pieces(book);
      this.index = null;
      this.shown = [];
      this.open = null;
      this.chosen = [0, book.models.length - 1];
      this.ready = this.begin(book);
      return this.ready;
    }

    async begin(book) {
      this.say("Loading …");
      let index;
      try {
        index = await load(`${book.stem}-index`, book.inPage);
      } catch (error) {
        this.say(error.message);
        this.detail.replaceChildren();
        return;
      }
      if (book !== this.book) return;
      this.index = index;
      this.places = new Map(index.id.map((id, row) => [id, row]));
      this.buildFilters();
      await this.filter();
      if (this.shown.length && this.open === null && !this.wanted) this.show(this.shown[0], false);
    }

    buildFilters() {
      const { book, index } = this;
      const again = () => this.filter();
      this.inputs = {};
      const found = [];
      const named = (column) => [["", "all"], ...(book.names[column] ?? []).map((name, code) => [String(code), name])];
      if (this.kind === "rewrites") {
        found.push(this.choice("source", "Chosen", named("source"), again));
        found.push(this.choice("reason", "Reason", named("reason"), again));
        found.push(this.range("words", "Words of the chosen reply"));
        if (index.nllBefore?.some((value) => value !== null)) {
          found.push(this.range("nllBefore", "NLL of the original"));
          found.push(this.range("nll", "NLL of the chosen reply"));
        }
      } else {
        if (this.books.length > 1) {
          const labels = this.books.map((other, place) => [String(place), other.key]);
          const change = () => this.use(this.books[Number(this.inputs.book.value)]);
          found.push(this.choice("book", "Benchmark", labels, change));
          this.inputs.book.value = String(this.books.indexOf(book));
        }
        const models = book.models.map(([, name], place) => [String(place), name]);
        ["left", "right"].forEach((side, place) => {
          const change = () => {
            this.chosen[place] = Number(this.inputs[side].value);
            this.filter();
            this.redraw();
          };
          found.push(this.choice(side, side === "left" ? "Left" : "Right", models, change));
          this.inputs[side].value = String(this.chosen[place]);
        });
        const verdicts = ["only the left passes", "only the right passes", "both pass", "neither passes"];
        const outcomes = [["", "all"], ...(this.judged ? verdicts : []).map((text, place) => [String(place + 1), text])];
        outcomes.push(["5", "replies of unequal length"]);
        found.push(this.choice("outcome", "Outcome", outcomes, again));
        if (this.judged) found.push(this.choice("reason", "Reason, right", named("reason"), again));
        if (book.names.group?.length > 1) found.push(this.choice("group", "Group", named("group"), again));
        found.push(this.range("words", "Words, right"));
      }
      const orders = [["", "as in the data"], ["words", "shortest first"], ["-words", "longest first"]];
      if (this.inputs["nll-least"]) orders.push(["-nllBefore", "least likely original first"], ["-nll", "least likely chosen first"]);
      found.push(this.choice("order", "Order", orders, again));
      this.tools.replaceChildren(...found);
    }

    /** Whether the verdicts on replies differ at all. */
    get judged() {
      return (this.book.names.reason?.length ?? 0) > 1;
    }

    /** A column of the index by its filter's name; those of replies depend on the models side by side. */
    column(name) {
      const perModel = this.kind === "replies" && ["words", "reason", "ok"].includes(name);
      return this.index[perModel ? `${name}${this.chosen[1]}` : name];
    }

    // Filters

    say(text) {
      this.status.textContent = text;
    }

    filterSoon() {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.filter(), 150);
    }

    clear() {
      this.search.value = "";
      for (const [name, input] of Object.entries(this.inputs)) {
        if (!["book", "left", "right"].includes(name)) input.value = "";
      }
      return this.filter();
    }

    /** The tests that a row's entry in the index must pass. */
    tests() {
      const found = [];
      for (const name of ["source", "reason", "group"]) {
        const value = this.inputs[name]?.value;
        const column = this.column(name);
        if (value) found.push((row) => column[row] === Number(value));
      }
      for (const name of ["words", "nll", "nllBefore"]) {
        const [least, most] = ["least", "most"].map((end) => this.inputs[`${name}-${end}`]?.value ?? "");
        const column = this.column(name);
        if (least !== "") found.push((row) => column[row] !== null && column[row] >= Number(least));
        if (most !== "") found.push((row) => column[row] !== null && column[row] <= Number(most));
      }
      const outcome = Number(this.inputs.outcome?.value ?? 0);
      if (outcome) {
        const [left, right] = this.chosen.map((model) => this.index[`ok${model}`]);
        const [short, long] = this.chosen.map((model) => this.index[`words${model}`]);
        found.push(
          {
            1: (row) => left[row] === 1 && right[row] === 0,
            2: (row) => left[row] === 0 && right[row] === 1,
            3: (row) => left[row] === 1 && right[row] === 1,
            4: (row) => left[row] === 0 && right[row] === 0,
            5: (row) => short[row] !== long[row],
          }[outcome],
        );
      }
      return found;
    }

    async filter() {
      if (!this.index) return;
      clearTimeout(this.timer);
      this.turn += 1;
      const turn = this.turn;
      const tests = this.tests();
      let rows = [];
      for (let row = 0; row < this.book.rows; row += 1) if (tests.every((test) => test(row))) rows.push(row);
      const order = this.inputs.order.value;
      if (order) {
        const column = this.column(order.replace("-", ""));
        const sign = order.startsWith("-") ? -1 : 1;
        rows.sort((a, b) => {
          if (column[a] === null || column[b] === null) return (column[a] === null) - (column[b] === null);
          return sign * (column[a] - column[b]) || a - b;
        });
      }
      const wanted = this.search.value.trim();
      this.reset.hidden = !(tests.length || wanted);
      if (!wanted) {
        this.list.scrollTop = 0;
        this.put(rows, "");
        return;
      }
      await this.searchIn(rows, wanted, turn);
    }

    /** Rows whose id or any text holds the words, shown as they are found; pieces are loaded on the way. */
    async searchIn(rows, wanted, turn) {
      const pattern = new RegExp(wanted.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replace(/\s+/g, "\\s+"), "iu");
      const found = [];
      let started = performance.now();
      this.list.scrollTop = 0;
      for (const [place, row] of rows.entries()) {
        if (!pattern.test(this.index.id[row])) {
          let texts = this.pieces.ready(row);
          if (!texts) {
            const piece = this.pieces.pieceOf(row);
            for (let ahead = piece + 1; ahead < Math.min(piece + 4, this.book.starts.length); ahead += 1) {
              this.pieces.load(ahead).catch(() => {}); // told when its turn comes
            }
            try {
              texts = await this.pieces.row(row);
            } catch (error) {
              if (turn === this.turn) this.put(found, error.message);
              return;
            }
          }
          if (turn !== this.turn) return;
          if (!holds(texts, pattern)) continue;
        }
        found.push(row);
        if (performance.now() - started > SLICE) {
          this.put(found, `searching: ${Math.round((100 * place) / rows.length)} %`);
          await pause();
          if (turn !== this.turn) return;
          started = performance.now();
        }
      }
      if (turn === this.turn) this.put(found, "");
    }

    put(rows, note) {
      this.shown = rows;
      this.room.style.height = `${rows.length * HEIGHT}px`;
      const all = rows.length === this.book.rows;
      this.say(`${all ? plural(rows.length, "row") : `${count(rows.length)} of ${plural(this.book.rows, "row")}`}${note ? `; ${note}` : ""}`);
      this.list.classList.toggle("none", !rows.length);
      this.draw();
    }

    // The list: only what is in sight is in the page

    draw() {
      if (!this.index) return;
      const first = Math.max(0, Math.floor(this.list.scrollTop / HEIGHT) - 4);
      const end = Math.min(this.shown.length, first + Math.ceil(this.list.clientHeight / HEIGHT) + 8);
      const rows = [];
      for (let place = first; place < end; place += 1) rows.push(this.item(place));
      this.room.replaceChildren(...rows);
      const open = this.shown.indexOf(this.open);
      if (open >= first && open < end) this.list.setAttribute("aria-activedescendant", this.nameOf(open));
      else this.list.removeAttribute("aria-activedescendant");
    }

    nameOf(place) {
      return `${this.kind}-row-${this.shown[place]}`;
    }

    item(place) {
      const row = this.shown[place];
      const open = row === this.open;
      const item = make(
        "div",
        {
          className: "row",
          role: "option",
          id: this.nameOf(place),
          "aria-selected": String(open),
          "aria-setsize": this.shown.length,
          "aria-posinset": place + 1,
        },
        make("div", { className: "top" }, make("span", { className: "id", textContent: this.index.id[row] }), ...this.marks(row)),
        make("div", { className: "preview", dir: "auto", textContent: this.index.preview[row] || "(empty)" }),
      );
      item.style.top = `${place * HEIGHT}px`;
      item.addEventListener("click", () => this.show(row));
      return item;
    }

    marks(row) {
      const { index, book } = this;
      if (this.kind === "rewrites") {
        const kept = index.source[row] === 1;
        const reason = book.names.reason[index.reason[row]];
        return [
          make("span", { className: "quiet", textContent: plural(index.words[row], "word") }),
          badge(kept ? reason : reason === "ok" ? "rewrite" : reason, kept ? "kept" : "good"),
        ];
      }
      if (!this.judged) {
        const sizes = this.chosen.map((model) => index[`words${model}`][row] ?? "–");
        return [make("span", { className: "quiet", textContent: `${sizes.join(" · ")} words` })];
      }
      return this.chosen.map((model) => {
        const ok = index[`ok${model}`][row];
        const [sign, tone, word] = ok === null ? ["–", "kept", "no reply"] : ok ? ["✓", "good", "passes"] : ["✗", "bad", "fails"];
        const mark = badge(sign, tone);
        mark.title = `${book.models[model][1]}: ${word}`;
        mark.setAttribute("role", "img");
        mark.setAttribute("aria-label", mark.title);
        return mark;
      });
    }

    // The open row

    address(row) {
      const id = this.index.id[row];
      const path = this.kind === "rewrites" ? ["rewrites", id] : ["replies", this.book.key, id, ...this.chosen.map((model) => this.book.models[model][0])];
      return `#${path.map(encodeURIComponent).join("/")}`;
    }

    /** Open a row; `here` says whether the person asked for it, so that the address follows. */
    async show(row, here = true) {
      this.open = row;
      this.draw();
      if (here) history.replaceState(null, "", this.address(row));
      let texts;
      try {
        texts = await this.pieces.row(row);
      } catch (error) {
        this.detail.replaceChildren(make("p", { textContent: error.message }));
        return;
      }
      if (row !== this.open) return;
      const { index } = this;
      const head = make("div", { className: "head" });
      const facts = [];
      if (this.kind === "rewrites") {
        const kept = index.source[row] === 1;
        head.append(badge(kept ? "original kept" : "rewrite", kept ? "kept" : "good"));
        head.append(make("span", { textContent: texts.reason === "ok" ? "passed all checks" : texts.reason }));
        if (texts.detail) head.append(make("code", { textContent: texts.detail }));
        facts.push(kept ? plural(index.words[row], "word") : `${count(index.before[row])} → ${plural(index.words[row], "word")}`);
        if (index.nllBefore?.[row] != null) {
          const after = index.nll[row] != null && !kept ? ` → ${index.nll[row].toFixed(3)}` : "";
          facts.push(`NLL under the seed ${index.nllBefore[row].toFixed(3)}${after} nats per token`);
        }
      } else if (index.group[row] !== null) {
        facts.push(this.book.names.group[index.group[row]]);
      }
      const title = make("h3", {}, make("span", { className: "id", textContent: index.id[row] }));
      const link = make("a", { href: this.address(row), textContent: "Link to this row", className: "link" });
      const steps = make(
        "div",
        { className: "steps" },
        make("button", { type: "button", textContent: "Previous", on: { click: () => this.step(-1) } }),
        make("button", { type: "button", textContent: "Next", on: { click: () => this.step(1) } }),
      );
      const body = this.kind === "rewrites" ? showRewrite(texts) : showReplies(texts, this.book.models, this.chosen, this.judged);
      const about = facts.length ? make("p", { className: "small facts-line", textContent: facts.join(" · ") }) : null;
      if (head.childNodes.length === 0) head.hidden = true;
      this.detail.replaceChildren(
        make("div", { className: "bar-line" }, title, link, steps),
        head,
        ...[about, ...body].filter((node) => node !== null),
      );
      this.detail.scrollTop = 0;
    }

    redraw() {
      if (this.open !== null) this.show(this.open);
    }

    step(by) {
      if (!this.shown.length) return;
      const now = this.shown.indexOf(this.open);
      const next = now < 0 ? 0 : Math.min(this.shown.length - 1, Math.max(0, now + by));
      this.reveal(next);
      this.show(this.shown[next]);
    }

    reveal(place) {
      const top = place * HEIGHT;
      const room = this.list.clientHeight;
      if (top < this.list.scrollTop) this.list.scrollTop = top;
      else if (top + HEIGHT > this.list.scrollTop + room) this.list.scrollTop = top + HEIGHT - room;
    }

    /** Open a row by its id, whatever the filters say, and bring it into sight. */
    async goTo(id) {
      this.wanted = true;
      await this.ready;
      this.wanted = false;
      if (!this.index) return;
      const row = this.places.get(id);
      if (row === undefined) {
        this.say(`No row “${id}” in this report; ${plural(this.book.rows, "row")}`);
        if (this.open === null && this.shown.length) this.show(this.shown[0], false);
        return;
      }
      if (!this.shown.includes(row)) await this.clear();
      const place = this.shown.indexOf(row);
      this.list.scrollTop = Math.max(0, place * HEIGHT - this.list.clientHeight / 2);
      await this.show(row);
      this.section.scrollIntoView();
      last = this;
    }

    listKey(event) {
      const page = Math.max(1, Math.floor(this.list.clientHeight / HEIGHT) - 1);
      const by = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
      if (by === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      this.step(by);
    }
  }

  /** Whether any text within a row's value matches. */
  function holds(value, pattern) {
    if (typeof value === "string") return pattern.test(value);
    if (value === null || typeof value !== "object") return false;
    return Object.values(value).some((part) => holds(part, pattern));
  }

  // Keys and addresses

  function onKey(event) {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (!last || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && (!typing || event.target === last.search)) {
      last.clear();
      last.list.focus();
    } else if (!typing && event.key === "/") last.search.focus();
    else if (!typing && event.key === "j") last.step(1);
    else if (!typing && event.key === "k") last.step(-1);
    else return;
    event.preventDefault();
  }

  async function follow(browsers) {
    let path;
    try {
      path = location.hash.slice(1).split("/").map(decodeURIComponent);
    } catch {
      return; // not an address of ours
    }
    const [kind, ...rest] = path;
    const browser = browsers.find((one) => one.kind === kind);
    if (!browser || !rest.length) return;
    if (kind === "rewrites") {
      await browser.goTo(rest[0]);
      return;
    }
    const [label, id, ...models] = rest;
    const book = browser.books.find((one) => one.key === label);
    if (!book || id === undefined) return;
    browser.wanted = true;
    if (book !== browser.book) await browser.use(book);
    else await browser.ready;
    models.slice(0, 2).forEach((name, side) => {
      const place = book.models.findIndex(([model]) => model === name);
      if (place < 0) return;
      browser.chosen[side] = place;
      browser.inputs[side ? "right" : "left"].value = String(place);
    });
    await browser.filter();
    await browser.goTo(id);
  }

  // On paper nothing can be opened

  let folded = [];

  function unfold() {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const part of folded) part.open = true;
  }

  function fold() {
    for (const part of folded) part.open = false;
    folded = [];
  }

  function begin() {
    document.querySelectorAll("table.sortable").forEach(makeSortable);
    window.addEventListener("beforeprint", unfold);
    window.addEventListener("afterprint", fold);
    const data = document.getElementById("books");
    if (!data) return;
    const books = JSON.parse(data.textContent);
    const browsers = [];
    for (const kind of ["rewrites", "replies"]) {
      const own = books.filter((book) => (book.stem === "rewrites") === (kind === "rewrites"));
      const section = document.getElementById(kind);
      if (!own.length || !section) continue;
      section.hidden = false;
      section.classList.add("live");
      browsers.push(new Browser(section, kind, own));
    }
    last = browsers[0] ?? null;
    document.addEventListener("keydown", onKey);
    window.addEventListener("hashchange", () => follow(browsers));
    follow(browsers);
  }

  begin();
})();
