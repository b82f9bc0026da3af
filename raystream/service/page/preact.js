// The vendored library under the names that the other modules import; it is loaded as a script before them.

export const { html, render, Component, useState, useEffect, useLayoutEffect, useRef, useMemo, useCallback } = globalThis.htmPreact;
