from src.command_line import program

if __name__ == "__main__":
    program("fetch_models", "src.commands.fetch_models:fetch_published")
