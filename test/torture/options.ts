/**
 * Reads a number of the command line.
 * @throws Error with a sentence for the user
 */
export function readWhole(name: string, text: string): number {
  const value = Number(text)
  if (Number.isSafeInteger(value) && value > 0) return value
  throw new Error(`--${name} needs a whole number of at least 1, not "${text}"`)
}
