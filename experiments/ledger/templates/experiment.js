follow(
  () => {
    setLanguage(asked().get("lang"));
    if (target()) document.getElementById(target())?.scrollIntoView();
  },
  () => `#${[target(), language() === LANGUAGES[0] ? "" : `lang=${language()}`].filter(Boolean).join("&")}`,
);
